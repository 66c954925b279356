"""Data of one's own in miniature: two files, one of them with several pictures and several answers a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.sources.mini import write_picture

TRAIN: list[dict[str, Any]] = [
    {"image": "photos/1.png", "instruction": "What was paid? Give the sum alone.", "answer": "12.50"},
    {"id": "till-7", "image": "photos/2.png", "instruction": "Name the shop.", "answer": ["Kiosk Nord", "the kiosk"]},
    {"id": 31, "images": ["photos/1.png", "photos/2.png"], "instruction": "Which is dearer?", "answer": "the second"},
]
VAL: list[dict[str, Any]] = [
    {"image": "photos/2.png", "instruction": "What was paid? Give the sum alone.", "answer": "3.20", "by": "Ann"},
]


def write(root: Path) -> None:
    """Write the folder."""
    for number in (1, 2):
        write_picture(root / f"photos/{number}.png", number)
    write_lines(root / "train.jsonl", TRAIN)
    write_lines(root / "val.jsonl", VAL)


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """Write one JSON-lines file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
