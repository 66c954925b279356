"""ScienceQA in miniature: three problems a split, one of them without a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.sources.mini import write_json, write_picture

MAGNETS: dict[str, Any] = {
    "question": "Will these two magnets pull or push each other?",
    "choices": ["push", "pull"],
    "answer": 1,
    "hint": "Two magnets lie side by side as the picture shows.",
    "image": "image.png",
    "task": "closed choice",
    "grade": "grade4",
    "subject": "natural science",
    "topic": "physics",
    "category": "Magnets",
    "skill": "Tell which magnets pull each other",
    "lecture": "Magnets have two poles.\nUnlike poles pull each other.",
    "solution": "The north pole of one lies beside the south pole of the other, so they pull.",
}
MAP: dict[str, Any] = {
    **MAGNETS,
    "question": "Which town lies farthest west?",
    "choices": ["Alder", "Birch", "Cedar"],
    "answer": 0,
    "hint": "",
    "grade": "grade2",
    "subject": "social science",
    "topic": "geography",
    "category": "Geography",
    "skill": "Read a map",
    "lecture": "",
    "solution": "",
}
SPELLING: dict[str, Any] = {
    **MAGNETS,
    "question": "Which word is spelled right?",
    "choices": ["recieve", "receive"],
    "hint": "",
    "image": None,
    "subject": "language science",
}


def write(root: Path) -> None:
    """Write the release: problems 1 to 3 are train, 4 to 6 val, 7 to 9 test."""
    problems: dict[str, Any] = {}
    splits: dict[str, list[str]] = {}
    for place, split in enumerate(("train", "val", "test")):
        splits[split] = [str(3 * place + number) for number in (1, 2, 3)]
        for pid, problem in zip(splits[split], (MAGNETS, SPELLING, MAP), strict=True):
            problems[pid] = {**problem, "split": split}
            if problem["image"]:
                write_picture(root / "images" / split / pid / problem["image"], int(pid))
    write_json(root / "problems.json", problems)
    write_json(root / "pid_splits.json", {**splits, "minitest": splits["test"][:1]})
