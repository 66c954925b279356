"""TextVQA in miniature: all three splits, Rosetta's OCR tokens, and the pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.sources.mini import write_json, write_picture

QUESTIONS: list[dict[str, Any]] = [
    {
        "question": "what is written on the mug?",
        "image_id": "00aa11bb22cc33dd",
        "image_classes": ["Mug", "Table"],
        "image_width": 12,
        "image_height": 8,
        "answers": ["good morning"] * 6 + ["morning", "good", "unanswerable", ""],
        "question_tokens": ["what", "is", "written", "on", "the", "mug"],
    },
    {
        "question": "which number has the bus? ",
        "image_id": "0e1f2a3b4c5d6e7f",
        "image_classes": ["Bus"],
        "image_width": 12,
        "image_height": 8,
        "answers": ["42"] * 9 + ["a2"],
        "question_tokens": ["which", "number", "has", "the", "bus"],
    },
]
TOKENS = {"00aa11bb22cc33dd": ["GOOD", " ", "MORNING", "{25%}"], "0e1f2a3b4c5d6e7f": []}
FIRST = {"train": 0, "val": 34602, "test": 39602}


def write(root: Path) -> None:
    """Write the release, its files directly in `root`."""
    for split, first in FIRST.items():
        records = [{**entry, "question_id": first + n, "set_name": split} for n, entry in enumerate(QUESTIONS)]
        if split == "test":
            for record in records:
                del record["answers"]
        head = {"dataset_type": split, "dataset_name": "textvqa", "dataset_version": "0.5.1"}
        write_json(root / f"TextVQA_0.5.1_{split}.json", {**head, "data": records})
        write_ocr(root, split)
    write_pictures(root)


def write_ocr(root: Path, split: str) -> None:
    """Write Rosetta's file of one split."""
    entries = [
        {"image_id": image, "ocr_tokens": words, "ocr_info": [{"word": word, "bounding_box": {}} for word in words]}
        for image, words in TOKENS.items()
    ]
    name = f"TextVQA_Rosetta_OCR_v0.2_{split}.json"
    write_json(root / name, {"dataset_type": split, "dataset_version": "0.2", "data": entries})


def write_pictures(root: Path) -> None:
    for folder in ("train_images", "test_images"):
        for number, image in enumerate(TOKENS):
            write_picture(root / folder / f"{image}.jpg", number)
