"""Hateful Memes in miniature, the five files of phase 2; harmless texts of our own, labels at random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.sources.mini import write_picture
from tests.sources.mini.vsr import write_lines

LINES: list[dict[str, Any]] = [
    {"id": 1235, "img": "img/01235.png", "label": 0, "text": "when the cake is {done} at last"},
    {"id": 42953, "img": "img/42953.png", "label": 1, "text": "nobody likes mondays"},
]


def write(root: Path) -> None:
    """Write the release; the test files have no labels."""
    for split in ("train", "dev_seen", "dev_unseen"):
        write_lines(root / f"{split}.jsonl", LINES)
    unlabelled = [{key: value for key, value in line.items() if key != "label"} for line in LINES]
    for split in ("test_seen", "test_unseen"):
        write_lines(root / f"{split}.jsonl", unlabelled)
    for number, line in enumerate(LINES):
        write_picture(root / line["img"], number)
