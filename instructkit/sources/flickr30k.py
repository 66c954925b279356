"""Flickr30K: five captions an image, in Karpathy's splits, or the original file of captions, which has no splits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import msgspec

from instructkit.data.folders import media_folder, spots
from instructkit.data.readers import RawRecord, json_list, require
from instructkit.sources import Reading, Source, Split
from instructkit.sources._shared import captions as caption_layouts
from instructkit.sources._shared.captions import KarpathyImage

_KARPATHY = "dataset_flickr30k.json"
_TOKENS = "results_20130124.token"


def _split(name: str, published: int, note: str) -> Split:
    return Split((f"{_KARPATHY} | flickr30k_{name}.json",), published, note)


SOURCE = Source(
    name="flickr30k",
    title="Flickr30K",
    task="captioning",
    role="held-out",
    split="test",
    splits={
        "train": _split("train", 145_000, "captions of 29,000 images"),
        "val": _split("val", 1_014, "images with five captions each"),
        "test": _split("test", 1_000, "images with five captions each"),
        "all": Split((_TOKENS,), 31_783, "images; the original file names no splits"),
    },
    images="the file name, in flickr30k-images/ or images/",
    tree="""\
flickr30k/
├── dataset_flickr30k.json                (Karpathy's splits; files may lie in annotations/)
│   or flickr30k_{train,val,test}.json    (the same as BLIP has them)
│   or results_20130124.token             (the original; for the split `all`)
└── flickr30k-images/1000092795.jpg ...   (or images/)""",
    licence="captions for non-commercial research and education only; the pictures under Flickr's terms",
    home="https://shannon.cs.illinois.edu/DenotationGraph",
    record=KarpathyImage,
    citation="Young et al. 2014, TACL; splits: Karpathy and Fei-Fei 2015, arXiv:1412.2306",
)


def read(raw: Path, split: str) -> Reading:
    """Read the first of the split's files that is there; layouts `karpathy`, `karpathy lists` and `token`."""
    names = [_TOKENS] if split == "all" else [_KARPATHY, f"flickr30k_{split}.json"]
    path = require(raw, *spots(*names))
    prefix, each = f"flickr30k/{split}/", split == "train"
    root = media_folder(raw, "flickr30k-images", "flickr30k_images", "images")
    if path.name == _KARPATHY:
        convert = caption_layouts.karpathy_converter(prefix, (split,), lambda image: _place(image.filename), each=each)
        return Reading("karpathy", [path], caption_layouts.karpathy_images(path, (split,)), convert, root)
    layout, records = ("token", _images(path)) if split == "all" else ("karpathy lists", json_list(path))
    return Reading(layout, [path], records, caption_layouts.list_converter(prefix, _place, each=each), root)


def _place(image: str) -> tuple[str, str]:
    """Key and path of a picture: its name without folders."""
    path = PurePosixPath(image)
    return path.stem, path.name


def _images(path: Path) -> Iterator[RawRecord]:
    """The images of the original file, whose lines are `<image>.jpg#<number>`, a tab and a caption."""
    captions: dict[str, list[str]] = {}
    first: dict[str, int] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            head, tab, caption = line.decode("utf-8", "replace").rstrip("\r\n").partition("\t")
            image, mark, place = head.partition("#")
            if not tab or not mark or not place.isdigit() or "\N{REPLACEMENT CHARACTER}" in caption:
                if line.strip():
                    yield RawRecord(path.name, f"line {number}", msgspec.json.encode({"line": head + tab + caption}))
                continue
            captions.setdefault(image, []).append(caption)
            first.setdefault(image, number)
    for image, texts in captions.items():
        yield RawRecord(path.name, f"line {first[image]}", msgspec.json.encode({"image": image, "caption": texts}))
