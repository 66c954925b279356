"""Visual Spatial Reasoning in miniature: the data folder of the repository, both versions, pictures in `images/`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.sources.mini import write_picture

LINES: list[dict[str, Any]] = [
    {
        "image": "000000000021.jpg",
        "image_link": "http://images.cocodataset.org/train2017/000000000021.jpg",
        "caption": "The lamp is above the sofa.",
        "label": 1,
        "relation": "above",
        "subj": "lamp",
        "obj": "sofa",
        "annotator_id": 4,
        "vote_true_validator_id": "[2, 9]",
        "vote_false_validator_id": "[]",
    },
    {
        "image": "000000000022.jpg",
        "image_link": "http://images.cocodataset.org/val2017/000000000022.jpg",
        "caption": "The goat is facing away from the gate.",
        "label": 0,
        "relation": "facing away from",
        "subj": "goat",
        "obj": "gate",
        "annotator_id": 5,
        "vote_true_validator_id": "[3]",
        "vote_false_validator_id": "[2, 8]",
    },
]


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """Write a JSON-lines file and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write(root: Path) -> None:
    """Write the release; lines of the random version have a frame of reference in place of subject and object."""
    random = [{key: value for key, value in line.items() if key not in ("subj", "obj")} for line in LINES]
    for part in ("train", "dev", "test"):
        write_lines(root / "splits" / "zeroshot" / f"{part}.jsonl", LINES)
        write_lines(
            root / "splits" / "random" / f"{part}.jsonl", [{**line, "reference_frame": None} for line in random]
        )
    for number, line in enumerate(LINES):
        write_picture(root / "images" / line["image"], number)
