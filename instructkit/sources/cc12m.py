"""Conceptual 12M: web pictures with alt texts, cleaned less than CC3M's, as LAVIS lists them."""

from __future__ import annotations

from pathlib import Path

from instructkit.sources import Reading, Source, Split
from instructkit.sources._shared import web_pairs
from instructkit.sources._shared.web_pairs import Record

_FILES = ["cc12m.json", "cc12m_train.json"]

SOURCE = Source(
    name="cc12m",
    title="Conceptual 12M",
    task="captioning",
    role="extra",
    split="train",
    splits={"train": Split((" | ".join(_FILES),), note="links rot: fewer pictures than pairs can still be had")},
    images=web_pairs.IMAGES,
    tree="""\
cc12m/
├── cc12m.json   (a list of {image or url, caption})
└── images/00000/000000000.jpg ...   (as img2dataset numbers those of a list of URLs)""",
    licence="may be freely used (Google); the pictures belong to their owners",
    home="https://github.com/google-research-datasets/conceptual-12m",
    record=Record,
    citation="Changpinyo et al. 2021, arXiv:2102.08981",
)


def read(raw: Path, split: str) -> Reading:
    """Read the list; its first record says what the pictures are named by."""
    return web_pairs.read_pairs(raw, SOURCE.name, _FILES)
