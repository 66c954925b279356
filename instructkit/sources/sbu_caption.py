"""SBU Captions: photographs of Flickr with their owners' captions, as LAVIS lists them."""

from __future__ import annotations

from pathlib import Path

from instructkit.sources import Reading, Source, Split
from instructkit.sources._shared import web_pairs
from instructkit.sources._shared.web_pairs import Record

_FILES = ["sbu.json", "sbu_caption.json"]

SOURCE = Source(
    name="sbu_caption",
    title="SBU Captions",
    task="captioning",
    role="extra",
    split="train",
    splits={"train": Split((" | ".join(_FILES),), note="links rot: fewer pictures than pairs can still be had")},
    images=web_pairs.IMAGES,
    tree="""\
sbu_caption/
├── sbu.json   (a list of {image or url, caption})
└── images/00000/000000000.jpg ...   (as img2dataset numbers those of a list of URLs)""",
    licence="not stated; the pictures belong to their owners",
    home="https://www.cs.rice.edu/~vo9/sbucaptions/",
    record=Record,
    citation="Ordonez et al. 2011, NeurIPS",
)


def read(raw: Path, split: str) -> Reading:
    """Read the list; its first record says what the pictures are named by."""
    return web_pairs.read_pairs(raw, SOURCE.name, _FILES)
