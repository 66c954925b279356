"""BLIP-2's first stage on scenes of the world: how well it finds pictures by captions and captions by pictures.

    python -m tests.benchmarks.first_stage                          # 15 runs of 20 minutes, one on each core
    python -m tests.benchmarks.first_stage --case "itc + itm + itg" --seeds 1

A small image encoder (ConvNeXt, 0.3M parameters) and nano's Q-Former start from random weights and read pictures of the
training side, some twice, with a caption in one of ten wordings. A caption tells kind and colour of every thing and
where it is; the last case has the world's own captions, which tell the salient half. Asked are 1,000 scenes of the test
side whose captions all differ. Side by side stand ITC alone, ITC with ITM, all three losses, and all three behind a
frozen random encoder. R@1 is that of the similarities alone, and with the nearest 16 re-ranked by ITM logit +
similarity; ties count against us.

Each run has one core; its minutes are those by the clock, its core minutes those of the processor. A run that has ended
is read from its file. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from instructkit.config.settings import ModelConfig, TowersConfig, TrainingConfig
from instructkit.data.media import CLIP_MEAN, CLIP_STD
from instructkit.models.batches import Captions
from instructkit.models.blip2 import Blip2Pretraining, similarity
from instructkit.models.load.mini import write_encoder
from instructkit.models.load.new_tokenizers import train_qformer_tokenizer
from instructkit.models.load.pretraining import join_pretraining
from instructkit.models.towers import prepare_towers, set_modes
from instructkit.training.data import Batch
from instructkit.training.objectives import Loss
from instructkit.training.optimizers import build_optimizer
from instructkit.training.pretraining import PretrainingObjective
from instructkit.training.schedule import learning_rate
from instructkit.world.captions import ROTATE, caption, full_caption
from instructkit.world.draw import SIDE, draw_picture
from instructkit.world.scene import Scene, draw, draw_scene

RERANKED = 16


class Case(NamedTuple):
    """What a run trains on, by which losses, and whether it trains the encoder."""

    losses: tuple[str, ...]
    trains_encoder: bool = True
    caption: Callable[[Scene, int], str] = full_caption


ALL = ("itc", "itm", "itg")
CASES = {
    "itc": Case(ALL[:1]),
    "itc + itm": Case(ALL[:2]),
    "itc + itm + itg": Case(ALL),
    "all, frozen encoder": Case(ALL, trains_encoder=False),
    "all, salient half": Case(ALL, caption=caption),
}


class Some(PretrainingObjective):
    """Some of the losses; the others are computed and count nothing."""

    def __init__(self, names: Sequence[str]) -> None:
        self.losses: Mapping[str, Loss] = {
            name: loss._replace(weight=float(name in names)) for name, loss in PretrainingObjective.losses.items()
        }


def train_scene(number: int) -> Scene:
    """A scene of the training side."""
    return draw(0, "first_stage", number, "train", draw_scene)


def test_scenes(count: int) -> list[Scene]:
    """Scenes of the test side whose captions all differ, full ones and others."""
    scenes: list[Scene] = []
    seen: set[str] = set()
    number = 0
    while len(scenes) < count:
        scene = draw(0, "first_stage", number, "test", draw_scene)
        captions = {caption(scene), full_caption(scene)}
        if not captions & seen:
            scenes.append(scene)
            seen |= captions
        number += 1
    return scenes


def pixels(scene: Scene) -> NDArray[np.uint8]:
    """`[SIDE, SIDE, 3]`."""
    return np.asarray(draw_picture(scene))


def train_pixels(number: int) -> NDArray[np.uint8]:
    """Those of a scene of the training side."""
    return pixels(train_scene(number))


def normalised(pictures: NDArray[np.uint8]) -> Tensor:
    """`[pictures, 3, SIDE, SIDE]`, in CLIP's normalisation."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return (torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255 - mean) / std


def draw_pictures(path: Path, count: int) -> None:
    """Pictures of the training side as one array, where they are not there yet."""
    if path.exists():
        return
    aside = path.with_suffix(".part.npy")
    pictures = np.lib.format.open_memmap(aside, "w+", np.uint8, (count, SIDE, SIDE, 3))
    with get_context("spawn").Pool(os.cpu_count()) as pool:
        for number, picture in enumerate(pool.imap(train_pixels, range(count), chunksize=100)):
            pictures[number] = picture
    pictures.flush()
    aside.rename(path)


def train(name: str, seed: int, options: argparse.Namespace) -> tuple[Blip2Pretraining, Captions, dict[str, float]]:
    """A model trained so, its tokeniser and what the steps took."""
    case = CASES[name]
    words = [case.caption(train_scene(number), number % ROTATE) for number in range(4000)]
    with TemporaryDirectory() as encoder:
        write_encoder(Path(encoder), SIDE, seed)
        model, captions = join_pretraining(
            ModelConfig(vision=encoder), torch.float32, lambda: train_qformer_tokenizer(words, 512), seed=seed
        )
    prepare_towers(model, TowersConfig(vision="full" if case.trains_encoder else "frozen"))
    set_modes(model, training=True)
    config = TrainingConfig(
        max_steps=options.steps,
        optimizer="muon",
        learning_rate=options.rate,
        warmup_steps=min(50, options.steps // 5),
        warmup_from=1e-5,
        betas=(0.9, 0.98),
    )
    optimizer, objective = build_optimizer(model, config), Some(case.losses)
    pictures = np.load(options.out / f"pictures-{options.scenes}.npy", mmap_mode="r")
    drawn = random.Random(seed)
    order = drawn.sample(range(options.scenes), options.scenes)
    began, worked = time.perf_counter(), time.process_time()
    for step in tqdm(range(options.steps), desc=f"{name}, seed {seed}", mininterval=10):
        numbers = [order[(step * options.pairs + row) % len(order)] for row in range(options.pairs)]
        inputs = {
            "pixel_values": normalised(pictures[numbers]),
            **captions.rows([case.caption(train_scene(number), drawn.randrange(ROTATE)) for number in numbers]),
            "image_ids": torch.tensor(numbers),
            "chances": torch.tensor([[drawn.random(), drawn.random()] for _ in numbers], dtype=torch.float64),
        }
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        sums = objective(model, Batch(inputs, [""] * len(numbers), [""] * len(numbers)))
        loss = sum(objective.losses[each].weight * found.total / found.count for each, found in sums.items())
        torch.as_tensor(loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    took = {"minutes": time.perf_counter() - began, "core minutes": time.process_time() - worked}
    return model, captions, {unit: seconds / 60 for unit, seconds in took.items()}


@torch.no_grad()
def recalls(
    model: Blip2Pretraining, captions: Captions, told: Sequence[str], pictures: NDArray[np.uint8], judges: bool
) -> dict[str, float]:
    """R@1 in percent, image to text and text to image, by similarity and, where the model `judges`, re-ranked."""
    set_modes(model, training=False)
    texts = captions.rows(told)
    features = torch.cat([model.encode_images(part) for part in normalised(pictures).split(100)])
    images = torch.cat([model.embed_images(part) for part in features.split(100)])
    alike = similarity(images, model.embed_texts(**texts))
    found = {}
    for way, scores in {"i2t": alike, "t2i": alike.T}.items():
        found[f"{way} itc"] = at_one(scores)
        if not judges:
            continue
        near = scores.topk(RERANKED, dim=1)
        again = torch.full_like(scores, -torch.inf)
        for row in range(len(scores)):
            others = near.indices[row]
            asked = torch.full_like(others, row)
            image, text = (asked, others) if way == "i2t" else (others, asked)
            seen, index = image.unique(return_inverse=True)
            judged = model.match(features[seen], index, texts["input_ids"][text], texts["attention_mask"][text])
            again[row, others] = judged + near.values[row]
        found[f"{way} itm"] = at_one(again)
    return found


def at_one(scores: Tensor) -> float:
    """How often the right column, that of the row's number, has the one best score, in percent."""
    right = scores.diagonal()
    better = (scores >= right[:, None]).sum(1) - 1
    return 100 * float(((better == 0) & right.isfinite()).float().mean())


def run(options: argparse.Namespace, one: tuple[str, int]) -> dict[str, float]:
    """What a case reaches with a seed, in percent, and the minutes that its training took; kept in a file."""
    name, seed = one
    settings = [options.steps, options.pairs, options.scenes, options.rate, options.tested]
    kept = options.out / f"{name.replace(' ', '_').replace('+', 'and')}-{seed}-{'-'.join(map(str, settings))}.json"
    if not kept.exists():
        torch.set_num_threads(1)
        scenes = test_scenes(options.tested)
        model, captions, took = train(name, seed, options)
        told = [CASES[name].caption(scene, 0) for scene in scenes]
        pictures = np.stack([pixels(scene) for scene in scenes])
        reached = recalls(model, captions, told, pictures, "itm" in CASES[name].losses)
        kept.write_text(json.dumps(reached | took))
    found: dict[str, float] = json.loads(kept.read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=64, help="a step")
    parser.add_argument("--scenes", type=int, default=40_000, help="of the training side")
    parser.add_argument("--tested", type=int, default=1000, help="scenes of the test side")
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--case", choices=list(CASES), action="append", help="these alone")
    parser.add_argument("--out", type=Path, default=Path("runs/first_stage"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    print(f"{options.steps} steps of {options.pairs} pairs, a core a run, {cores} cores, load {load:.1f}")
    draw_pictures(options.out / f"pictures-{options.scenes}.npy", options.scenes)
    runs = [(name, seed) for seed in range(options.seeds) for name in options.case or CASES]
    report: dict[str, dict[str, list[float]]] = {}
    with ProcessPoolExecutor(cores, get_context("spawn")) as pool:
        for (name, _), reached in zip(runs, pool.map(partial(run, options), runs), strict=True):
            for what, value in reached.items():
                report.setdefault(name, {}).setdefault(what, []).append(round(value, 1))
    for name, found in report.items():
        means = {
            what: f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"
            for what, values in found.items()
        }
        print(f"{name:<20} " + "   ".join(f"{what} {value}" for what, value in means.items()), flush=True)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
