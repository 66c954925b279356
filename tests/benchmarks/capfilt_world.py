"""What the two trials of CapFilt on the world share: pairs with exchanged captions, and runs of the recipes.

Captions tell every thing with its colour, cell by cell, and the ground. All that is trained and filtered goes through
the recipes, a seed in a process with one core. A run that has ended is read from its folder when a trial is started
again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import torch

from instructkit.conversion.convert import convert
from instructkit.errors import UserError
from instructkit.files import write_atomically, writing
from instructkit.training.recipe import run_recipe
from instructkit.world.captions import ROTATE, full_caption
from instructkit.world.draw import draw_picture, save_picture
from instructkit.world.scene import Scene, Side, draw, draw_scene

NOISE = 0.4
"""Share of the captions that are exchanged."""
CAPTIONS = 5
"""Captions that people write for a picture."""
CAPTION_TOKENS = 56
"""More than any of them has."""
_TRIES = 10_000
Result = TypeVar("Result")


class Pair(NamedTuple):
    """A picture and a caption.

    Attributes:
        name: of the picture's file.
        text: the caption.
        exchanged: whether it is that of another picture, and false of this one.
    """

    name: str
    text: str
    exchanged: bool


def scenes_of(stream: str, side: Side, count: int) -> list[Scene]:
    """The first scenes of a stream."""
    return [draw(0, f"capfilt/{stream}", number, side, draw_scene) for number in range(count)]


def is_true(teller: Scene, seen: Scene) -> bool:
    """Whether all that a caption of `teller` tells is true of `seen`: the things with their colours, and the ground."""
    there = {(thing.kind, thing.colour) for thing in seen.things}
    return teller.background == seen.background and all((each.kind, each.colour) in there for each in teller.things)


def exchange(scenes: Sequence[Scene], share: float, seed: int) -> list[int]:
    """For each picture, the number of the scene whose caption it gets.

    Args:
        scenes: of the pictures.
        share: of the pictures that get the caption of another one, false of them; rounded to whole pictures.
        seed: of the draws.

    Raises:
        ValueError: no caption that is false of a picture was found.
    """
    rng = random.Random(f"{seed}/exchange")
    tellers = list(range(len(scenes)))
    for number in sorted(rng.sample(range(len(scenes)), round(share * len(scenes)))):
        others = (rng.randrange(len(scenes)) for _ in range(_TRIES))
        other = next((each for each in others if not is_true(scenes[each], scenes[number])), None)
        if other is None:
            raise ValueError(f"scene {number}: none of {_TRIES} captions drawn is false of it; draw more scenes")
        tellers[number] = other
    return tellers


def web_pairs(scenes: Sequence[Scene], share: float, seed: int) -> list[Pair]:
    """A pair a picture, in one of the wordings of captions, some of them exchanged."""
    return [
        Pair(
            f"{number // 10_000:05}/{number:09}.jpg",
            full_caption(scenes[teller], number % ROTATE).lower(),
            teller != number,
        )
        for number, teller in enumerate(exchange(scenes, share, seed))
    ]


def write_web(raw: Path, scenes: Sequence[Scene], pairs: Sequence[Pair], root: Path) -> None:
    """Draw pictures, list them with their captions as CC3M does, and convert the list into `root`."""
    for scene, pair in zip(scenes, pairs, strict=True):
        save_picture(raw / "images" / pair.name, draw_picture(scene))
    write_atomically(raw / "cc3m.json", json.dumps([{"image": each.name, "caption": each.text} for each in pairs]))
    convert("cc3m", raw, root)


def write_human(raw: Path, scenes: Sequence[Scene], root: Path) -> list[tuple[Path, str]]:
    """Draw pictures, list them with true captions as COCO does, and convert them into `root`; returns all pairs."""
    listed, pairs = [], []
    for number, scene in enumerate(scenes):
        name = f"train2014/COCO_train2014_{number:012}.jpg"
        save_picture(raw / name, draw_picture(scene))
        texts = [full_caption(scene, (number + place) % ROTATE) for place in range(CAPTIONS)]
        listed += [{"image": name, "caption": text, "image_id": f"coco_{number}"} for text in texts]
        pairs += [(raw / name, text) for text in texts]
    write_atomically(raw / "coco_karpathy_train.json", json.dumps(listed))
    convert("coco_caption", raw, root)
    return pairs


class Clock:
    """The time that a trial may take; asked before each run.

    Args:
        minutes: from now on.
    """

    def __init__(self, minutes: float) -> None:
        self.minutes, self.began = minutes, time.monotonic()

    def check(self, what: str) -> None:
        """Ends the trial where its time is over."""
        if time.monotonic() - self.began > 60 * self.minutes:
            raise SystemExit(f"{self.minutes:g} minutes are over before {what}; start again to go on from here")


def once(folder: Path, asked: Mapping[str, Any]) -> bool:
    """Whether a run that was asked for so lies finished in a folder.

    Raises:
        UserError: one lies there that was asked for otherwise.
    """
    kept = folder / "asked.json"
    if not kept.is_file():
        return False
    if json.loads(kept.read_text()) != plain(asked):
        raise UserError(f"{folder}: a run with other settings lies here; choose another --out, or remove it")
    return True


def keep(folder: Path, asked: Mapping[str, Any]) -> None:
    """Say that the run in a folder has ended."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "asked.json", json.dumps(plain(asked), indent=1) + "\n")


def plain(asked: Mapping[str, Any]) -> Any:
    """Settings as JSON holds them."""
    return json.loads(json.dumps(asked, default=str))


def run(folder: Path, config: str, settings: Mapping[str, Any], clock: Clock) -> Path:
    """Run a recipe into a folder, unless the run lies there already.

    Args:
        folder: of the run.
        config: name of the config.
        settings: over those of the config.
        clock: says whether there is time.

    Raises:
        UserError: what the recipe says, or the folder holds another run.
    """
    asked = {"config": config, **settings}
    if not once(folder, asked):
        clock.check(str(folder))
        print(f"--- {folder}", flush=True)
        run_recipe(config, {**settings, "output": folder})
        keep(folder, asked)
    return folder


def pretrain(folder: Path, root: Path, source: str, seed: int, options: argparse.Namespace, clock: Clock) -> Path:
    """A small BLIP from random weights, trained with all its losses; returns the model."""
    settings = {
        "data.root": root,
        "data.train": [source],
        "data.caption_tokens": CAPTION_TOKENS,
        "training.max_steps": options.steps,
        "training.warmup_steps": min(50, options.steps // 5),
        "training.learning_rate": options.rate,
        "training.batch_size": options.pairs,
        "pairs.queue": 4 * options.pairs,
        "seed": seed,
    }
    return run(folder, "pretrain_blip_world", settings, clock) / "model"


def finetune(
    folder: Path, model: Path, root: Path, losses: Sequence[str], seed: int, options: argparse.Namespace, clock: Clock
) -> Path:
    """A BLIP finetuned on human pairs, as a captioner by `lm` or as a filter by `itc` and `itm`; returns the model."""
    captions = list(losses) == ["lm"]
    settings: dict[str, Any] = {
        "model.name": model,
        "data.root": root,
        "data.train": ["coco_caption"],
        "data.caption_tokens": CAPTION_TOKENS,
        "training.max_steps": options.tuning,
        "training.warmup_steps": min(20, options.tuning // 5),
        "training.learning_rate": options.tuning_rate,
        "training.batch_size": options.pairs,
        "pairs.losses": list(losses),
        "pairs.queue": 4 * options.pairs,
        "seed": seed,
    }
    if captions:
        settings["data.prompt"] = "a picture of"
    return run(folder, "pretrain_blip_world", settings, clock) / "model"


def capfilt(folder: Path, root: Path, settings: Mapping[str, Any], seed: int, clock: Clock) -> Path:
    """Pairs of the web with captions added and dropped; returns the folder of the converted pairs."""
    asked = {"data.root": root, "data.web": ["cc3m"], "batch_size": 64, "seed": seed, **settings}
    return run(folder, "capfilt", asked, clock) / "data"


def by_seed(one: Callable[[int], Result], seeds: int) -> list[Result]:
    """What comes out for each seed; as many at a time as there are cores, each with one."""
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        return list(pool.map(one, range(seeds)))


@contextmanager
def for_people() -> Iterator[None]:
    """What the user can put right ends a trial in one line."""
    try:
        yield
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


def add_options(parser: argparse.ArgumentParser, *, steps: int, tuning: int, minutes: float) -> None:
    """The options that both trials have."""
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=steps, help="of a pre-training")
    parser.add_argument("--rate", type=float, default=4e-3, help="learning rate of a pre-training")
    parser.add_argument("--tuning", type=int, default=tuning, help="steps of a finetuning")
    parser.add_argument("--tuning-rate", type=float, default=4e-4, help="learning rate of a finetuning")
    parser.add_argument("--pairs", type=int, default=64, help="a step")
    parser.add_argument("--minutes", type=float, default=minutes, help="no run begins after so many")


def same_trial(out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The options that a trial's figures depend on, once it is sure that the folder holds no trial with others.

    Raises:
        UserError: it does.
    """
    asked = {key: each for key, each in vars(options).items() if key not in ("out", "seeds", "minutes")}
    if not once(out, asked):
        keep(out, asked)
    return asked


def as_json(value: Any) -> bytes:
    """JSON for people."""
    return msgspec.json.format(msgspec.json.encode(value)) + b"\n"
