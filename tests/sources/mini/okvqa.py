"""OK-VQA in miniature: questions and annotations of both splits, and their pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.sources.mini import write_json, write_picture

LICENSE = {"url": "http://creativecommons.org/licenses/by/4.0/", "name": "Creative Commons Attribution 4.0"}
TYPES = {"one": "Vehicles and Transportation", "four": "Sports and Recreation", "five": "Cooking and Food"}

QUESTIONS = [
    {"image_id": 139, "question": "Which country is this dish from?", "question_id": 1395},
    {"image_id": 285, "question": "What is the man doing with his board?", "question_id": 2855},
]
RAW_ANSWERS = {
    1395: ["Italy"] * 4 + ["Spain"] * 2 + ["Greece"] * 2 + ["France"] * 2,
    2855: ["surfing"] * 6 + ["racing"] * 2 + ["waiting"] * 2,
}
STEMS = {"surfing": "surf", "racing": "race", "waiting": "wait"}


def annotation(question: dict[str, Any]) -> dict[str, Any]:
    """An entry of `annotations` with the keys of the release."""
    number = question["question_id"]
    answers = [
        {"answer_id": place, "raw_answer": raw, "answer_confidence": "yes", "answer": STEMS.get(raw, raw.lower())}
        for place, raw in enumerate(RAW_ANSWERS[number], 1)
    ]
    return {
        "image_id": question["image_id"],
        "answer_type": "other",
        "question_type": "five" if number == 1395 else "four",
        "question_id": number,
        "answers": answers,
        "confidence": 3,
    }


def write(root: Path) -> None:
    """Write the release, its files directly in `root`."""
    for split in ("train", "val"):
        head = {"license": LICENSE, "data_subtype": f"{split}2014"}
        questions = {**head, "task_type": "Open-Ended", "questions": QUESTIONS, "data_type": "mscoco"}
        annotations = {**head, "question_types": TYPES, "annotations": [annotation(entry) for entry in QUESTIONS]}
        write_json(root / f"OpenEnded_mscoco_{split}2014_questions.json", questions)
        write_json(root / f"mscoco_{split}2014_annotations.json", annotations)
        for number in (139, 285):
            write_picture(root / f"{split}2014" / f"COCO_{split}2014_{number:012d}.jpg", number)
