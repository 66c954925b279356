"""Pictures of the training side with descriptions that leave nothing out: what the mini-world's encoder learns from."""

from __future__ import annotations

import json
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from instructkit.files import write_atomically, writing
from instructkit.sources.web_capfilt import OWN_LIST
from instructkit.world.captions import describe
from instructkit.world.draw import draw_picture, save_picture
from instructkit.world.scene import Scene, draw, draw_signed_scene


def write_pairs(raw: Path, count: int, seed: int = 0) -> None:
    """Draw pictures and list them with their descriptions as `recipes/capfilt.py` lists pairs.

    Args:
        raw: folder of the release.
        count: number of pictures.
        seed: decides all that is drawn.

    Raises:
        UserError: a file cannot be written.
    """
    with writing(raw), get_context("spawn").Pool() as pool:
        entries = list(pool.imap(partial(_write, raw, seed), range(count), chunksize=200))
        write_atomically(raw / OWN_LIST, json.dumps(entries))


def _write(raw: Path, seed: int, number: int) -> dict[str, str]:
    scene = pictured(number, seed)
    path = raw / "images" / f"{number // 10_000:05}" / f"{number:09}.jpg"
    save_picture(path, draw_picture(scene))
    return {"image": str(path.absolute()), "caption": describe(scene), "origin": "human"}


def pictured(number: int, seed: int = 0) -> Scene:
    """The scene of a picture: one to six things, half the time a word and a number."""
    return draw(seed, "pairs", number, "train", partial(draw_signed_scene, least=1, most=6))
