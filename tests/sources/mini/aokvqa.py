"""A-OKVQA in miniature: all three splits, and their pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.sources.mini import write_json, write_picture

RECORDS: list[dict[str, Any]] = [
    {
        "image_id": 785,
        "question_id": "3aBcDeFgHiJkLmNoPqRsTu",
        "question": "What keeps the woman warm? ",
        "choices": ["stove", "jacket", "blanket", "sun"],
        "correct_choice_idx": 1,
        "direct_answers": [
            "jacket",
            "coat",
            "jacket",
            "jacket",
            "her coat",
            "jacket",
            "clothes",
            "coat",
            "coat",
            "coat",
        ],
        "difficult_direct_answer": False,
        "rationales": ["She wears a thick jacket on the slope.", "Snow lies around her.", "A jacket keeps warm."],
    },
    {
        "image_id": 802,
        "question_id": "4bCdEfGhIjKlMnOpQrStUv",
        "question": "Why is the freezer door open?",
        "choices": ["broken", "cleaning", "cooling", "unknown"],
        "correct_choice_idx": 0,
        "direct_answers": ["broken"] * 5 + ["cleaning"] * 3 + ["to air", "is old"],
        "difficult_direct_answer": True,
        "rationales": ["Its hinge hangs loose.", "Nobody is cleaning.", "It is old."],
    },
]
UNANSWERED = ("image_id", "question_id", "question", "choices")


def write(root: Path) -> None:
    """Write the release, its files directly in `root`."""
    for split in ("train", "val", "test"):
        records = [{"split": split, **record} for record in RECORDS]
        if split == "test":
            records = [{"split": split, **{key: record[key] for key in UNANSWERED}} for record in RECORDS]
        write_json(root / f"aokvqa_v1p0_{split}.json", records)
        for number in (785, 802):
            write_picture(root / f"{split}2017" / f"{number:012d}.jpg", number)
