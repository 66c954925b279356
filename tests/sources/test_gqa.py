from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from instructkit.data.examples import Example
from tests.sources import converted, sample, write_json, write_picture

# GQA in miniature: the four balanced files and their pictures.
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


KETTLE = Example(
    id="gqa/testdev/90001",
    images=["n7001.jpg"],
    question="What color is the kettle?",
    answers=["red"],
    meta={"structural": "query", "semantic": "attr", "full_answer": "The kettle is red."},
)
SPOON = Example(
    id="gqa/testdev/90002",
    images=["7002.jpg"],
    question="Is there a spoon left of the cup?",
    answers=["no"],
    meta={"structural": "verify", "semantic": "rel", "full_answer": "No, there is a fork left of the cup."},
)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


def test_short_and_full_answer_stay_apart(raw: Path) -> None:
    assert converted("gqa", raw, "testdev") == ([KETTLE, SPOON], [])


def test_test_questions_have_no_answers(raw: Path) -> None:
    examples, rejected = converted("gqa", raw, "test")
    assert rejected == []
    assert examples[0] == Example(id="gqa/test/90001", images=["n7001.jpg"], question="What color is the kettle?")


def test_files_may_lie_in_the_folder_they_are_packed_in(raw: Path) -> None:
    (raw / "questions1.2").mkdir()
    (raw / "val_balanced_questions.json").rename(raw / "questions1.2" / "val_balanced_questions.json")
    assert len(converted("gqa", raw, "val")[0]) == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"question": "  "}, "at `$.question`"),
        ({"question": None}, "Expected `str`, got `null` - at `$.question`"),
        ({"imageId": 7002}, "Expected `str`, got `int` - at `$.imageId`"),
        ({"imageId": "../n7001"}, "at `$.imageId`"),
        ({"answer": ["no"]}, "at `$.answer`"),
        ({"answer": " "}, "at `$.answer`"),
        ({"types": "query"}, "Expected `object | null`, got `str` - at `$.types`"),
    ],
)
def test_broken_records_are_rejected_with_the_reason(raw: Path, change: dict[str, Any], reason: str) -> None:
    path = raw / "testdev_balanced_questions.json"
    questions = json.loads(path.read_text())
    questions["90001"].update(change)
    path.write_text(json.dumps(questions))
    examples, rejected = converted("gqa", raw, "testdev")
    assert examples == [SPOON]
    assert (rejected[0].file, rejected[0].record) == (path.name, "90001")
    assert rejected[0].reason.endswith(reason)


def test_a_record_that_is_no_utf8_is_rejected_and_the_next_one_read(raw: Path) -> None:
    path = raw / "testdev_balanced_questions.json"
    path.write_bytes(path.read_bytes().replace(b"kettle?", b"kettl\xe9?"))
    examples, rejected = converted("gqa", raw, "testdev")
    assert examples == [SPOON]
    assert rejected[0].record == "90001"
    assert "can't decode byte 0xe9" in rejected[0].reason


def test_authentic_excerpt_converts_whole() -> None:
    examples, rejected = converted("gqa", sample("gqa"), "testdev")
    assert rejected == []
    assert len(examples) == 50
    assert examples[0] == Example(
        id="gqa/testdev/201307251",
        images=["n161313.jpg"],
        question="Is it overcast?",
        answers=["no"],
        meta={"structural": "verify", "semantic": "global", "full_answer": "No, it is clear."},
    )
    assert examples[1].answers == ["women"]
    assert examples[-1].id == "gqa/testdev/20442334"
