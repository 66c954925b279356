"""VizWiz in miniature: all three splits of the release of 2020 (`write`) or val of that of 2018 (`write_2018`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.sources.mini import write_json, write_picture

RECORDS: list[dict[str, Any]] = [
    {
        "question": "Which soup is in this can? ",
        "answers": ["tomato"] * 5 + ["tomato soup"] * 3 + ["unanswerable", "unsuitable"],
        "answer_type": "other",
        "answerable": 1,
    },
    {
        "question": "Can you read me this letter please?",
        "answers": ["unanswerable"] * 7 + ["unsuitable"] * 2 + ["dear"],
        "answer_type": "unanswerable",
        "answerable": 0,
    },
]


def records(split: str, digits: int) -> list[dict[str, Any]]:
    """The entries of one split, whose photos have numbers of so many digits."""
    entries = []
    for number, record in enumerate(RECORDS):
        entry = {"image": f"VizWiz_{split}_{number:0{digits}}.jpg", "question": record["question"]}
        if split != "test":
            answers = [{"answer": text, "answer_confidence": "maybe"} for text in record["answers"]]
            entry |= {**record, "answers": answers}
        entries.append(entry)
    return entries


def write(root: Path) -> None:
    """Write the release of 2020, annotations directly in `root`, photos in a folder a split."""
    for split in ("train", "val", "test"):
        entries = records(split, 8)
        write_json(root / f"{split}.json", entries)
        for number, entry in enumerate(entries):
            write_picture(root / split / entry["image"], number)


def write_2018(root: Path) -> None:
    """Write val of the release of 2018, in its customary folders."""
    entries = records("val", 12)
    write_json(root / "Annotations" / "val.json", entries)
    for number, entry in enumerate(entries):
        write_picture(root / "Images" / entry["image"], number)
