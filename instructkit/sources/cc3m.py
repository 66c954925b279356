"""Conceptual Captions: web pictures with cleaned alt texts, as LAVIS lists them."""

from __future__ import annotations

from pathlib import Path

from instructkit.sources import Reading, Source, Split
from instructkit.sources._shared import web_pairs
from instructkit.sources._shared.web_pairs import Record

_FILES = ["cc3m.json", "cc3m_train.json", "conceptual_caption_train.json"]

SOURCE = Source(
    name="cc3m",
    title="Conceptual Captions (CC3M)",
    task="captioning",
    role="extra",
    split="train",
    splits={"train": Split((" | ".join(_FILES),), note="links rot: fewer pictures than pairs can still be had")},
    images=web_pairs.IMAGES,
    tree="""\
cc3m/
├── cc3m.json   (a list of {image or url, caption})
└── images/00000/000000000.jpg ...   (as img2dataset numbers those of a list of URLs)""",
    licence="may be freely used (Google); the pictures belong to their owners",
    home="https://ai.google.com/research/ConceptualCaptions/",
    record=Record,
    citation="Sharma et al. 2018, ACL",
)


def read(raw: Path, split: str) -> Reading:
    """Read the list; its first record says what the pictures are named by."""
    return web_pairs.read_pairs(raw, SOURCE.name, _FILES)
