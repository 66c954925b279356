"""Web CapFilt: web pictures of Conceptual Captions and SBU with captions written and filtered by BLIP."""

from __future__ import annotations

from pathlib import Path

from instructkit.sources import Reading, Source, Split
from instructkit.sources._shared import web_pairs
from instructkit.sources._shared.web_pairs import Record

OWN_LIST = "capfilt.json"
"""The list that `recipes/capfilt.py` writes."""
_FILES = [
    "ccs_synthetic_filtered_large.json",
    "ccs_synthetic_filtered.json",
    "ccs_filtered.json",
    "laion_synthetic_filtered_large.json",
    "laion_synthetic_filtered.json",
    "laion_filtered.json",
    OWN_LIST,
]

SOURCE = Source(
    name="web_capfilt",
    title="Web CapFilt",
    task="captioning",
    role="held-in",
    split="train",
    splits={"train": Split((" | ".join(_FILES),), published=13_873_136, note="ccs_synthetic_filtered_large.json")},
    images=web_pairs.IMAGES,
    tree="""\
web_capfilt/
├── ccs_synthetic_filtered_large.json   (or another of BLIP's lists)
└── images/00000/000000000.jpg ...      (what `img2dataset --output_format files` makes of the URLs, in their order)""",
    licence="not stated for the captions (BLIP's code: BSD 3-Clause); the pictures belong to their owners",
    home="https://github.com/salesforce/BLIP",
    record=Record,
    citation="Li et al. 2022, arXiv:2201.12086",
)


def read(raw: Path, split: str) -> Reading:
    """Read the first of BLIP's lists that is there; its first record says what the pictures are named by."""
    return web_pairs.read_pairs(raw, SOURCE.name, _FILES)
