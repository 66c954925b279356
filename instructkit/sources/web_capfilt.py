"""Web CapFilt: web pictures of Conceptual Captions and SBU with captions written and filtered by BLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from instructkit.examples import Example
from instructkit.fields import Text
from instructkit.layouts import media_folder, spots
from instructkit.releases import RawRecord, Reject, json_list, require
from instructkit.sources import Reading, Source, Split

WebAddress = Annotated[str, msgspec.Meta(pattern=r"\Ahttps?://\S")]

PER_FOLDER = 10_000
"""Pictures a folder that img2dataset writes, unless it is told another `number_sample_per_shard`."""


class Record(msgspec.Struct, gc=False):
    """One pair: `url` in the files as BLIP ships them, `image` (a path) in those made for its training code."""

    caption: Text
    url: WebAddress | None = None
    image: Text | None = None


_FILES = [
    "ccs_synthetic_filtered_large.json",
    "ccs_synthetic_filtered.json",
    "ccs_filtered.json",
    "laion_synthetic_filtered_large.json",
    "laion_synthetic_filtered.json",
    "laion_filtered.json",
]

SOURCE = Source(
    name="web_capfilt",
    title="Web CapFilt",
    task="captioning",
    role="held-in",
    split="train",
    splits={"train": Split((" | ".join(_FILES),), published=13_873_136, note="ccs_synthetic_filtered_large.json")},
    images="the path under `image`, or 00453/004539375.jpg for record 4539375 of a file of URLs",
    tree="""\
web_capfilt/
├── ccs_synthetic_filtered_large.json   (or another of BLIP's lists)
└── images/00000/000000000.jpg ...      (what `img2dataset --output_format files` makes of the URLs, in their order)""",
    licence="not stated for the captions (BLIP's code: BSD 3-Clause); the pictures belong to their owners",
    home="https://github.com/salesforce/BLIP",
    record=Record,
    citation="Li et al. 2022, arXiv:2201.12086",
)

_decode = msgspec.json.Decoder(Record).decode


def read(raw: Path, split: str) -> Reading:
    """Read the first of BLIP's lists that is there."""
    path = require(raw, *spots(*_FILES))
    return Reading(_layout(path), [path], json_list(path), convert, media_folder(raw, "images"))


def convert(raw: RawRecord) -> list[Example]:
    """One pair to its example, whose id is the place in the list."""
    record = _decode(raw.data)
    if record.image is not None:
        path = record.image
    elif record.url is not None:
        path = url_path(int(raw.key))
    else:
        raise Reject("neither image nor url")
    return [Example(id=f"web_capfilt/train/{raw.key}", images=[path], references=[record.caption.strip()])]


def url_path(index: int) -> str:
    """Where img2dataset puts the picture of a record: folders of 10,000, names of nine digits, pictures as JPEG."""
    return f"{index // PER_FOLDER:05}/{index:09}.jpg"


def _layout(path: Path) -> str:
    """What the first record points to its picture with, and the name of the file."""
    first = next(json_list(path), None)
    kind = "image" if first is not None and b'"image"' in first.data else "url"
    return f"{kind}, {path.name}"
