"""BLIP-2's first stage on scenes of the world: how well it finds pictures by captions and captions by pictures.

    python -m tests.benchmarks.first_stage                          # 20 minutes a line on two cores, 12 lines
    python -m tests.benchmarks.first_stage --seeds 1 --steps 300    # a look

A nano encoder and Q-Former start from random weights and read pictures of the training side, each once or so, with a
caption in one of ten wordings. Asked are 1,000 scenes of the test side whose captions all differ. Side by side stand
ITC alone, ITC with ITM, all three losses, and all three behind a frozen random encoder, each over some seeds and as
many steps. R@1 is that of the similarities alone, and with the nearest 16 re-ranked by ITM logit + similarity; ties
count against us. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from instructkit.config import ModelConfig, TowersConfig, TrainingConfig
from instructkit.data.media import image_pixels
from instructkit.models.batches import Captions
from instructkit.models.blip2 import Blip2Pretraining, similarity
from instructkit.models.load.new_tokenizers import train_qformer_tokenizer
from instructkit.models.load.pretraining import join_pretraining
from instructkit.models.towers import prepare_towers, set_modes
from instructkit.training.data import Batch
from instructkit.training.objectives import Loss
from instructkit.training.optimizers import build_optimizer
from instructkit.training.pretraining import PretrainingObjective
from instructkit.training.schedule import learning_rate
from instructkit.world.captions import ROTATE, caption
from instructkit.world.draw import draw_picture
from instructkit.world.scene import Scene, draw, draw_scene

SIZE, RERANKED = 64, 16
CASES: dict[str, tuple[tuple[str, ...], bool]] = {
    "itc": (("itc",), True),
    "itc + itm": (("itc", "itm"), True),
    "itc + itm + itg": (("itc", "itm", "itg"), True),
    "all, frozen encoder": (("itc", "itm", "itg"), False),
}
"""Losses, and whether the encoder is trained."""


class Some(PretrainingObjective):
    """Some of the losses; the others are computed and count nothing."""

    def __init__(self, names: Sequence[str]) -> None:
        self.losses: Mapping[str, Loss] = {
            name: loss._replace(weight=float(name in names)) for name, loss in PretrainingObjective.losses.items()
        }


def pixels(scenes: Sequence[Scene]) -> Tensor:
    """`[scenes, 3, SIZE, SIZE]`."""
    return torch.stack([torch.from_numpy(image_pixels(draw_picture(scene), SIZE)) for scene in scenes])


def train_scene(number: int) -> Scene:
    """A scene of the training side."""
    return draw(0, "first_stage", number, "train", draw_scene)


def test_scenes(count: int) -> list[Scene]:
    """Scenes of the test side whose captions all differ."""
    found: dict[str, Scene] = {}
    number = 0
    while len(found) < count:
        scene = draw(0, "first_stage", number, "test", draw_scene)
        found.setdefault(caption(scene), scene)
        number += 1
    return list(found.values())


def train(case: str, seed: int, options: argparse.Namespace) -> tuple[Blip2Pretraining, Captions, float]:
    """A model trained so, its tokeniser and the seconds that the steps took."""
    names, trains_encoder = CASES[case]
    words = [caption(train_scene(number), number % ROTATE) for number in range(2000)]
    model, captions = join_pretraining(
        ModelConfig(), torch.float32, lambda: train_qformer_tokenizer(words, 512), seed=seed
    )
    prepare_towers(model, TowersConfig(vision="full" if trains_encoder else "frozen"))
    set_modes(model, training=True)
    config = TrainingConfig(
        max_steps=options.steps,
        optimizer="muon",
        learning_rate=options.rate,
        warmup_steps=min(50, options.steps // 5),
        warmup_from=1e-5,
        betas=(0.9, 0.98),
    )
    optimizer, objective = build_optimizer(model, config), Some(names)
    drawn = random.Random(seed)
    began = time.perf_counter()
    for step in tqdm(range(options.steps), desc=f"{case}, seed {seed}"):
        if time.perf_counter() - began > 60 * options.minutes:
            raise SystemExit(f"{case}: {step} of {options.steps} steps took {options.minutes} minutes")
        numbers = [drawn.randrange(options.scenes) for _ in range(options.pairs)]
        scenes = [train_scene(number) for number in numbers]
        inputs = {
            "pixel_values": pixels(scenes),
            **captions.rows([caption(scene, drawn.randrange(ROTATE)) for scene in scenes]),
            "image_ids": torch.tensor(numbers),
            "chances": torch.tensor([[drawn.random(), drawn.random()] for _ in numbers], dtype=torch.float64),
        }
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        sums = objective(model, Batch(inputs, [""] * len(numbers), [""] * len(numbers)))
        loss = sum(objective.losses[name].weight * each.total / each.count for name, each in sums.items())
        torch.as_tensor(loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model, captions, time.perf_counter() - began


@torch.no_grad()
def recalls(model: Blip2Pretraining, captions: Captions, scenes: Sequence[Scene]) -> dict[str, float]:
    """R@1 in percent, image to text and text to image, by similarity and re-ranked."""
    set_modes(model, training=False)
    texts = captions.rows([caption(scene) for scene in scenes])
    features = torch.cat([model.encode_images(part) for part in pixels(scenes).split(100)])
    images = torch.cat([model.embed_images(part) for part in features.split(100)])
    alike = similarity(images, model.embed_texts(**texts))
    found = {}
    for way, scores in {"i2t": alike, "t2i": alike.T}.items():
        found[f"{way} itc"] = at_one(scores)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--pairs", type=int, default=64, help="a step")
    parser.add_argument("--scenes", type=int, default=1_000_000, help="of the training side")
    parser.add_argument("--tested", type=int, default=1000, help="scenes of the test side")
    parser.add_argument("--rate", type=float, default=1.2e-3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=20, help="that a training may take")
    parser.add_argument("--case", choices=list(CASES), action="append", help="these alone")
    options = parser.parse_args()
    scenes = test_scenes(options.tested)
    load = f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
    print(f"{options.steps} steps of {options.pairs} pairs, {load}")
    report: dict[str, dict[str, list[float]]] = {}
    for case in options.case or CASES:
        for seed in range(options.seeds):
            model, captions, seconds = train(case, seed, options)
            reached = {**recalls(model, captions, scenes), "minutes": seconds / 60}
            for name, value in reached.items():
                report.setdefault(case, {}).setdefault(name, []).append(round(value, 1))
        means = {
            name: f"{statistics.mean(values):.1f} ({min(values)} to {max(values)})"
            for name, values in report[case].items()
        }
        print(f"{case:<20} " + "   ".join(f"{name} {value}" for name, value in means.items()), flush=True)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
