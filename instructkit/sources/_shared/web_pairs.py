"""Lists of web pictures with one caption each, as BLIP and LAVIS ship them: by URL, or by the path of a download."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

from instructkit.data.examples import Example
from instructkit.data.folders import media_folder, spots
from instructkit.data.readers import UNDECODABLE, RawRecord, Reject, json_list, require
from instructkit.sources import Reading
from instructkit.sources._shared.fields import Text

WebAddress = Annotated[str, msgspec.Meta(pattern=r"\Ahttps?://\S")]

PER_FOLDER = 10_000
"""Pictures a folder that img2dataset writes, unless it is told another `number_sample_per_shard`."""
ORIGINS = ("web", "synthetic", "human")
"""Who wrote a caption, in lists of `recipes/capfilt.py`."""
IMAGES = "the path under `image`, or 00453/004539375.jpg for record 4539375 of a file of URLs"


class Record(msgspec.Struct, gc=False):
    """One pair: `url` in the files as BLIP ships them, `image` (a path) in those made for its training code.

    `origin` and `score` are in lists that `recipes/capfilt.py` writes: who wrote the caption, and the filter's score.
    Elsewhere these names may stand for anything.
    """

    caption: Text
    url: WebAddress | None = None
    image: Text | None = None
    origin: Any = None
    score: Any = None


_decode = msgspec.json.Decoder(Record).decode


def read_pairs(raw: Path, source: str, files: Sequence[str]) -> Reading:
    """Read the first of some lists that is there; its first record says what the pictures are named by.

    Args:
        raw: folder of the release.
        source: name of the source, for the ids.
        files: names of the lists.
    """
    path = require(raw, *spots(*files))
    first = _first_image(next(json_list(path), None))
    kind = _kind(first)

    def convert(raw_record: RawRecord) -> list[Example]:
        record = _decode(raw_record.data)
        if record.image is not None:
            if record.image.startswith("/") != (kind == "absolute image"):
                raise Reject("relative and absolute paths of images in one file")
            picture = record.image.removeprefix("/")
        elif record.url is not None:
            picture = url_path(int(raw_record.key))
        else:
            raise Reject("neither image nor url")
        key = f"{source}/train/{raw_record.key}"
        return [Example(id=key, images=[picture], references=[record.caption.strip()], meta=_judgement(record))]

    root = Path("/") if kind == "absolute image" else media_folder(raw, "images", first=first)
    return Reading(f"{kind}, {path.name}", [path], json_list(path), convert, root)


def _judgement(record: Record) -> dict[str, str]:
    """Who wrote a caption and how well it fits, where `recipes/capfilt.py` says it."""
    if record.origin not in ORIGINS:
        return {}
    score = {"score": f"{record.score:.6f}"} if isinstance(record.score, float | int) else {}
    return {"origin": record.origin, **score}


def url_path(index: int) -> str:
    """Where img2dataset puts the picture of a record: folders of 10,000, names of nine digits, pictures as JPEG."""
    return f"{index // PER_FOLDER:05}/{index:09}.jpg"


def _first_image(first: RawRecord | None) -> str | None:
    """The path of a record's picture; None where it has none or does not decode."""
    try:
        return _decode(first.data).image if first is not None else None
    except UNDECODABLE:
        return None


def _kind(image: str | None) -> str:
    """What a record points to its picture with: `url`, `image` or `absolute image`."""
    if image is None:
        return "url"
    return "absolute image" if image.startswith("/") else "image"
