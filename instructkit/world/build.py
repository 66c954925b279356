"""`instructkit world`: all releases below one folder, and the sheet of examples."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from instructkit.conversion.miniatures import is_miniature
from instructkit.errors import UserError
from instructkit.files import write_atomically, writing
from instructkit.prompts.described import DESCRIPTIONS, Description
from instructkit.world.release import SIZES, Release
from instructkit.world.releases import asked, captioned, filmed, read, reasoned, talked
from instructkit.world.text import tell

WHOLE = "world.json"
"""Written last, beside the releases: size and seed of the world."""

WRITERS: dict[str, Callable[[Release], None]] = {
    "coco_caption": captioned.write_coco,
    "web_capfilt": captioned.write_web,
    "nocaps": captioned.write_nocaps,
    "flickr30k": captioned.write_flickr,
    "textcaps": read.write_textcaps,
    "textvqa": read.write_textvqa,
    "ocrvqa": read.write_ocrvqa,
    "vqav2": asked.write_vqav2,
    "okvqa": asked.write_okvqa,
    "aokvqa": asked.write_aokvqa,
    "vizwiz": asked.write_vizwiz,
    "gqa": reasoned.write_gqa,
    "vsr": reasoned.write_vsr,
    "iconqa": reasoned.write_iconqa,
    "scienceqa": reasoned.write_scienceqa,
    "visdial": talked.write_visdial,
    "hatefulmemes": talked.write_memes,
    "llava_conversation": talked.write_llava_conversation,
    "llava_detail": talked.write_llava_detail,
    "llava_reasoning": talked.write_llava_reasoning,
    "msvd_qa": filmed.write_msvd,
    "msrvtt_qa": filmed.write_msrvtt,
    "ivqa": filmed.write_ivqa,
}
"""Writers by source; question generation uses the examples of three of them."""


def build(out: Path, seed: int = 0, size: str = "tiny", pictures: bool = True) -> Iterator[Release]:
    """Write each release into `out/<source>`; yields it when it is written. Last come descriptions of all pictures.

    Args:
        out: folder of the releases.
        seed: decides everything that is drawn.
        size: one of `SIZES`.
        pictures: False leaves pictures and films out.

    Raises:
        UserError: no size has that name, something else than a miniature lies in a release's place, or a file cannot
            be written.
    """
    if size not in SIZES:
        raise UserError(f"no world has the size {size!r}; there are {', '.join(SIZES)}")
    for name in WRITERS:
        folder = out / name
        other = any(folder.iterdir()) if folder.is_dir() else folder.exists()
        if other and not is_miniature(folder):
            raise UserError(f"{folder}: holds no miniature release; it is left alone, choose another --out")
    lines: list[bytes] = []
    with writing(out):
        (out / WHOLE).unlink(missing_ok=True)
    for name, write in WRITERS.items():
        with writing(out / name):
            if (out / name).exists():
                shutil.rmtree(out / name)
            release = Release(out / name, name, seed, SIZES[size])
            write(release)
            release.finish(pictures)
        yield release
        lines += map(msgspec.json.encode, _descriptions(release))
    with writing(out):
        write_atomically(out / DESCRIPTIONS, b"".join(line + b"\n" for line in lines))
        write_atomically(out / WHOLE, json.dumps({"size": size, "seed": seed, "pictures": pictures}) + "\n")


def drawn(out: Path) -> dict[str, Any] | None:
    """Size and seed of the world that lies in a folder, and whether it has its pictures; None where none lies whole."""
    try:
        found: dict[str, Any] = json.loads((out / WHOLE).read_text())
    except (OSError, ValueError):
        return None
    return found


def is_drawn(out: Path, seed: int = 0, size: str = "tiny") -> bool:
    """Whether a folder holds that world, whole, with its pictures."""
    return drawn(out) == {"size": size, "seed": seed, "pictures": True}


def _descriptions(release: Release) -> Iterator[Description]:
    """What is to be seen in each picture and film of a release, those that cannot be used left out."""
    for path, scene in release.pictures.items():
        if path not in release.spoilt:
            yield Description(f"{release.name}/{path}", tell(scene, "picture"))
    for path, film in release.films.items():
        yield Description(f"{release.name}/{path}", tell(film, "film"))
