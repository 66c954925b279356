"""Pictures of the training side with sentences about them: what the mini-world's Q-Former learns from before its LLM.

`train.jsonl` has, of each picture, the whole description and some sentences, each in two parts: what is given, and what
is told.
"""

from __future__ import annotations

import json
import random
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from instructkit.files import write_atomically, writing
from instructkit.world.captions import describe
from instructkit.world.draw import draw_picture, save_picture
from instructkit.world.scene import Scene, draw, draw_signed_scene
from instructkit.world.sentences import tell

LINES = "train.jsonl"
SENTENCES = 3
"""Of each picture."""
HEAD = "The picture was"
"""What is given of a whole description."""


def write_pairs(raw: Path, count: int, seed: int = 0) -> None:
    """Draw pictures and list them with their sentences, as a release of the source jsonl.

    Args:
        raw: folder of the release.
        count: number of pictures.
        seed: decides all that is drawn.

    Raises:
        UserError: a file cannot be written.
    """
    with writing(raw), get_context("spawn").Pool() as pool:
        lines = list(pool.imap(partial(_write, raw, seed), range(count), chunksize=200))
        write_atomically(raw / LINES, "".join(lines))


def _write(raw: Path, seed: int, number: int) -> str:
    scene = pictured(number, seed)
    image = f"images/{number // 10_000:05}/{number:09}.jpg"
    save_picture(raw / image, draw_picture(scene))
    rng = random.Random(f"{seed}/sentences/{number}")
    parts = [(HEAD, describe(scene).removeprefix(f"{HEAD} ")), *(tell(rng, scene)[:2] for _ in range(SENTENCES))]
    lines = [{"image": image, "instruction": given, "answer": told} for given, told in parts]
    return "".join(json.dumps(line) + "\n" for line in lines)


def pictured(number: int, seed: int = 0) -> Scene:
    """The scene of a picture: one to six things, half the time a word and a number."""
    return draw(seed, "pairs", number, "train", partial(draw_signed_scene, least=1, most=6))
