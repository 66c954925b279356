"""GQA in miniature: the four balanced files and their pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.sources.mini import write_json, write_picture

QUESTIONS: dict[str, dict[str, Any]] = {
    "90001": {
        "semantic": [
            {"operation": "select", "dependencies": [], "argument": "kettle (3)"},
            {"operation": "query", "dependencies": [0], "argument": "color"},
        ],
        "entailed": [],
        "equivalent": ["90001"],
        "question": "What color is the kettle?",
        "imageId": "n7001",
        "isBalanced": True,
        "groups": {"global": "color", "local": "06-kettle_color"},
        "answer": "red",
        "semanticStr": "select: kettle (3)->query: color [0]",
        "annotations": {"answer": {}, "question": {"4": "3"}, "fullAnswer": {"1": "3"}},
        "types": {"detailed": "attr", "semantic": "attr", "structural": "query"},
        "fullAnswer": "The kettle is red.",
    },
    "90002": {
        "semantic": [{"operation": "exist", "dependencies": [], "argument": "?"}],
        "entailed": ["90003"],
        "equivalent": ["90002"],
        "question": "Is there a spoon left of the cup?",
        "imageId": "7002",
        "isBalanced": True,
        "groups": {"global": None, "local": "13-spoon_left"},
        "answer": "no",
        "semanticStr": "exist: ?",
        "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
        "types": {"detailed": "existRelC", "semantic": "rel", "structural": "verify"},
        "fullAnswer": "No, there is a fork left of the cup.",
    },
}


def write(root: Path) -> None:
    """Write the release, its files directly in `root`."""
    for split in ("train", "val", "testdev"):
        write_json(root / f"{split}_balanced_questions.json", QUESTIONS)
    asked = {
        number: {key: question[key] for key in ("question", "imageId", "isBalanced")}
        for number, question in QUESTIONS.items()
    }
    write_json(root / "test_balanced_questions.json", asked)
    for number, question in enumerate(QUESTIONS.values()):
        write_picture(root / "images" / f"{question['imageId']}.jpg", number)
