"""What an image encoder of the mini-world tells of a picture: a linear probe of each fact.

    python -m tests.benchmarks.probe --model runs/mini/stage1/model    # some minutes on one core

For each of the nine cells the three by three patches around its middle go through one linear layer a fact, which learns
on scenes of the training side: whether something is there, its kind, colour, size and texture. Those around a sign tell
the word or the number, and the mean of all patches where the picture was made. Asked are scenes of the test side.
The last line is JSON, percent right by fact; the exit code is 1 where a fact is below the aim.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from instructkit.data.media import CLIP_MEAN, CLIP_STD
from instructkit.models.load.pretraining import load_pretraining
from instructkit.world.draw import CELL_HEIGHT, CELL_WIDTH, GRID_TOP, SIDE, SIGN_HEIGHT, SIGN_TOP, draw_picture
from instructkit.world.scene import (
    BACKGROUNDS,
    COLOURS,
    KINDS,
    NUMBERS,
    SIZES,
    TEXTURES,
    WORDS,
    Scene,
    Side,
    draw,
    draw_signed_scene,
)

AIM = 95.0
CELL = {"kind": tuple(KINDS), "colour": COLOURS, "size": SIZES, "texture": TEXTURES}


class Middle(NamedTuple):
    """The middle of what is looked at, in shares of the picture's sides."""

    row: float
    column: float


CELLS = [
    Middle((GRID_TOP + CELL_HEIGHT * (row + 0.5)) / SIDE, CELL_WIDTH * (column + 0.5) / SIDE)
    for row in range(3)
    for column in range(3)
]
SIGNS = [Middle((SIGN_TOP + SIGN_HEIGHT / 2) / SIDE, 0.25), Middle((SIGN_TOP + SIGN_HEIGHT / 2) / SIDE, 0.75)]


class Probe(NamedTuple):
    """What one linear layer reads and is asked.

    Attributes:
        rows: features, `[questions, features]`.
        wanted: number of the right answer, `[questions]`.
    """

    rows: Tensor
    wanted: Tensor


def scenes_of(side: Side, count: int) -> list[Scene]:
    """Scenes, half of them with a word and a number printed."""
    return [draw(0, "probe", number, side, partial(draw_signed_scene, least=1, most=6)) for number in range(count)]


def probes_of(scenes: Sequence[Scene], maps: Tensor) -> dict[str, Probe]:
    """For each fact what tells it: the patches around a cell, around a sign, or the mean of all.

    Args:
        scenes: what the pictures show.
        maps: patch features, `[scenes, side, side, width]`.
    """
    asked: dict[str, list[tuple[int, Middle, int]]] = {fact: [] for fact in ("place", *CELL, "word", "figure")}
    for number, scene in enumerate(scenes):
        things = {thing.cell: thing for thing in scene.things}
        for cell, middle in enumerate(CELLS):
            asked["place"].append((number, middle, int(cell in things)))
            for fact, values in CELL.items():
                if cell in things:
                    asked[fact].append((number, middle, values.index(getattr(things[cell], fact))))
        for middle, sign in zip(SIGNS, scene.signs, strict=False):
            fact, values = ("figure", NUMBERS) if sign.isdigit() else ("word", WORDS)
            asked[fact].append((number, middle, values.index(sign)))
    grounds = torch.tensor([BACKGROUNDS.index(scene.background) for scene in scenes])
    found = {"background": Probe(maps.mean((1, 2)), grounds)}
    for fact, entries in asked.items():
        rows = torch.stack([around(maps[number], middle) for number, middle, _ in entries])
        found[fact] = Probe(rows, torch.tensor([answer for *_, answer in entries]))
    return found


def around(patches: Tensor, middle: Middle) -> Tensor:
    """Three by three patches, those beyond the edge zero, `[9 * width]`."""
    side = len(patches)
    padded = nn.functional.pad(patches, (0, 0, 1, 1, 1, 1))
    row, column = int(middle.row * side), int(middle.column * side)
    return padded[row : row + 3, column : column + 3].flatten()


@torch.no_grad()
def maps_of(model: Path, scenes: Sequence[Scene]) -> Tensor:
    """Patch features as they lie in the picture, `[scenes, side, side, width]`; a token of the whole is left out."""
    loaded, _ = load_pretraining(str(model))
    loaded.eval()
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    rows = []
    for start in range(0, len(scenes), 100):
        pixels = np.stack([np.asarray(draw_picture(scene)) for scene in scenes[start : start + 100]])
        rows.append(loaded.encode_images((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std))
    features = torch.cat(rows)
    side = math.isqrt(features.shape[1])
    return features[:, features.shape[1] - side * side :].unflatten(1, (side, side))


def right(seen: Probe, asked: Probe, epochs: int) -> float:
    """Percent of right answers of a linear layer that has learned from what was seen."""
    torch.manual_seed(0)
    mean, std = seen.rows.mean(0), seen.rows.std()
    layer = nn.Linear(seen.rows.shape[1], int(max(seen.wanted.max(), asked.wanted.max())) + 1)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(len(seen.rows)).split(500):
            told = layer((seen.rows[rows] - mean) / std)
            nn.functional.cross_entropy(told, seen.wanted[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
        schedule.step()
    with torch.no_grad():
        told = layer((asked.rows - mean) / std).argmax(1)
    return round(100 * float((told == asked.wanted).float().mean()), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="of the first stage")
    parser.add_argument("--scenes", type=int, default=6000, help="of the training side")
    parser.add_argument("--tested", type=int, default=1000, help="scenes of the test side")
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    seen, asked = (
        probes_of(scenes, maps_of(options.model, scenes))
        for scenes in (scenes_of("train", options.scenes), scenes_of("test", options.tested))
    )
    found = {fact: right(seen[fact], asked[fact], options.epochs) for fact in seen}
    print(json.dumps(found))
    if min(found.values()) < AIM:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
