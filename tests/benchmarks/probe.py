"""What an image encoder of the mini-world tells of a picture: a linear probe of each fact.

    python -m tests.benchmarks.probe --model runs/mini/stage1/model    # some minutes on one core

All patch features of a picture, end to end, go through one linear layer, which learns on scenes of the training side
what is in each of the nine cells, where the picture was made, and what its two signs say. Asked are scenes of the test
side. The last line is JSON, percent right by fact; the exit code is 1 where a fact is below the aim.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from instructkit.data.media import CLIP_MEAN, CLIP_STD
from instructkit.models.load.pretraining import load_pretraining
from instructkit.world.draw import draw_picture
from instructkit.world.pairs import signed_scene
from instructkit.world.scene import BACKGROUNDS, COLOURS, KINDS, NUMBERS, SIZES, TEXTURES, WORDS, Scene, Side, draw

AIM = 95.0
NONE = -100
"""What cross-entropy leaves out."""
CELL = {"kind": tuple(KINDS), "colour": COLOURS, "size": SIZES, "texture": TEXTURES}


class Task(NamedTuple):
    """A question that every picture is asked.

    Attributes:
        fact: what it is for.
        answers: number of answers.
        wanted: number of the right one by picture, `NONE` where there is none, `[pictures]`.
    """

    fact: str
    answers: int
    wanted: Tensor


def scenes_of(side: Side, count: int) -> list[Scene]:
    """Scenes, half of them with a word and a number printed."""
    return [draw(0, "probe", number, side, signed_scene) for number in range(count)]


def tasks_of(scenes: Sequence[Scene]) -> list[Task]:
    """All questions about scenes: five a cell, one for the ground, two a sign."""
    tasks = [
        Task("background", len(BACKGROUNDS), torch.tensor([BACKGROUNDS.index(each.background) for each in scenes]))
    ]
    for cell in range(9):
        there = [next((thing for thing in scene.things if thing.cell == cell), None) for scene in scenes]
        tasks.append(Task("place", 2, torch.tensor([int(thing is not None) for thing in there])))
        for fact, values in CELL.items():
            wanted = [NONE if thing is None else values.index(getattr(thing, fact)) for thing in there]
            tasks.append(Task(fact, len(values), torch.tensor(wanted)))
    for place in range(2):
        for fact, values in (("word", WORDS), ("figure", NUMBERS)):
            said = [scene.signs[place] if scene.signs else "" for scene in scenes]
            tasks.append(
                Task(fact, len(values), torch.tensor([values.index(s) if s in values else NONE for s in said]))
            )
    return tasks


@torch.no_grad()
def features_of(model: Path, scenes: Sequence[Scene]) -> Tensor:
    """Patch features, end to end, `[scenes, patches * width]`."""
    loaded, _ = load_pretraining(str(model))
    loaded.eval()
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    rows = []
    for start in range(0, len(scenes), 100):
        pixels = np.stack([np.asarray(draw_picture(scene)) for scene in scenes[start : start + 100]])
        rows.append(loaded.encode_images((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std).flatten(1))
    return torch.cat(rows)


def train(features: Tensor, tasks: Sequence[Task], epochs: int, seed: int = 0) -> nn.Linear:
    """One linear layer with the answers of all tasks side by side."""
    torch.manual_seed(seed)
    layer = nn.Linear(features.shape[1], sum(task.answers for task in tasks))
    nn.init.zeros_(layer.weight)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    order = random.Random(seed)
    for _ in range(epochs):
        for rows in torch.tensor(order.sample(range(len(features)), len(features))).split(200):
            losses = [
                nn.functional.cross_entropy(logits, task.wanted[rows], ignore_index=NONE, reduction="sum")
                for logits, task in zip(parts(layer(features[rows]), tasks), tasks, strict=True)
            ]
            (torch.stack(losses).sum() / len(rows)).backward()
            optimizer.step()
            optimizer.zero_grad()
        schedule.step()
    return layer


def parts(logits: Tensor, tasks: Sequence[Task]) -> Sequence[Tensor]:
    """The logits of each task."""
    return logits.split([task.answers for task in tasks], dim=1)


@torch.no_grad()
def right(layer: nn.Linear, features: Tensor, tasks: Sequence[Task]) -> dict[str, float]:
    """Percent of right answers by fact."""
    found: dict[str, list[Tensor]] = {}
    for logits, task in zip(parts(layer(features), tasks), tasks, strict=True):
        asked = task.wanted != NONE
        found.setdefault(task.fact, []).append((logits.argmax(1) == task.wanted)[asked])
    return {fact: round(100 * float(torch.cat(each).float().mean()), 1) for fact, each in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="of the first stage")
    parser.add_argument("--scenes", type=int, default=10_000, help="of the training side")
    parser.add_argument("--tested", type=int, default=1000, help="scenes of the test side")
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()
    seen, asked = scenes_of("train", options.scenes), scenes_of("test", options.tested)
    features, tested = features_of(options.model, seen), features_of(options.model, asked)
    mean, std = features.mean(0), features.std(0) + 1e-6
    layer = train((features - mean) / std, tasks_of(seen), options.epochs)
    found = right(layer, (tested - mean) / std, tasks_of(asked))
    print(json.dumps(found))
    if min(found.values()) < AIM:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
