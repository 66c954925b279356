"""VQAv2 in miniature: questions and annotations of two splits, questions alone of two, and their pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.sources.mini import write_json, write_picture

INFO = {"description": "A tiny release in the layout of VQA v2.0.", "version": "2.0", "year": 2017}
LICENSE = {"url": "http://creativecommons.org/licenses/by/4.0/", "name": "Creative Commons Attribution 4.0"}

QUESTIONS = [
    {"image_id": 9, "question": "How many bowls are on the tray?", "question_id": 9000},
    {"image_id": 9, "question": "Is the soup hot?", "question_id": 9001},
    {"image_id": 25, "question": "Where does the giraffe stand?", "question_id": 25000},
]
ANSWERS = {
    9000: ["4", "4", "4", "3", "4", "four", "4", "4", "5", "4"],
    9001: ["yes"] * 6 + ["no"] * 4,
    25000: ["field", "zoo", "in grass", "field", "zoo", "field", "outside", "field", "zoo", "grass"],
}
KINDS = {9000: ("how many", "number"), 9001: ("is the", "yes/no"), 25000: ("where", "other")}


def annotation(question: dict[str, Any]) -> dict[str, Any]:
    """An entry of `annotations` with the keys of the release."""
    number = question["question_id"]
    answers = ANSWERS[number]
    return {
        "question_type": KINDS[number][0],
        "multiple_choice_answer": max(answers, key=answers.count),
        "answers": [
            {"answer": answer, "answer_confidence": "yes", "answer_id": place}
            for place, answer in enumerate(answers, 1)
        ],
        "image_id": question["image_id"],
        "answer_type": KINDS[number][1],
        "question_id": number,
    }


def write(root: Path) -> None:
    """Write the release, its files directly in `root`."""
    for subset in ("train2014", "val2014", "test-dev2015", "test2015"):
        head = {"info": INFO, "license": LICENSE, "data_type": "mscoco", "data_subtype": subset}
        write_json(root / f"v2_OpenEnded_mscoco_{subset}_questions.json", {**head, "questions": QUESTIONS})
        if not subset.startswith("test"):
            annotations = [annotation(question) for question in reversed(QUESTIONS)]
            write_json(root / f"v2_mscoco_{subset}_annotations.json", {**head, "annotations": annotations})
        folder = subset.replace("test-dev", "test")
        for number in (9, 25):
            write_picture(root / folder / f"COCO_{folder}_{number:012d}.jpg", number)
