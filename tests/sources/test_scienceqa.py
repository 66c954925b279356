from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from instructkit.data.examples import Example
from instructkit.errors import UserError
from tests.sources import converted, sample, write_json, write_picture

# ScienceQA in miniature: three problems a split, one of them without a picture.
MAGNETS_PROBLEM: dict[str, Any] = {
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
MAP_PROBLEM: dict[str, Any] = {
    **MAGNETS_PROBLEM,
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
SPELLING_PROBLEM: dict[str, Any] = {
    **MAGNETS_PROBLEM,
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
        for pid, problem in zip(splits[split], (MAGNETS_PROBLEM, SPELLING_PROBLEM, MAP_PROBLEM), strict=True):
            problems[pid] = {**problem, "split": split}
            if problem["image"]:
                write_picture(root / "images" / split / pid / problem["image"], int(pid))
    write_json(root / "problems.json", problems)
    write_json(root / "pid_splits.json", {**splits, "minitest": splits["test"][:1]})


MAGNETS = Example(
    id="scienceqa/test/7",
    images=["test/7/image.png"],
    question="Will these two magnets pull or push each other?",
    answers=["pull"],
    choices=["push", "pull"],
    choice=1,
    context="Two magnets lie side by side as the picture shows.",
    lecture="Magnets have two poles.\nUnlike poles pull each other.",
    rationales=["The north pole of one lies beside the south pole of the other, so they pull."],
    meta={
        "subject": "natural science",
        "topic": "physics",
        "category": "Magnets",
        "skill": "Tell which magnets pull each other",
        "grade": "grade4",
    },
)
MAP = Example(
    id="scienceqa/test/9",
    images=["test/9/image.png"],
    question="Which town lies farthest west?",
    answers=["Alder"],
    choices=["Alder", "Birch", "Cedar"],
    choice=0,
    meta={
        "subject": "social science",
        "topic": "geography",
        "category": "Geography",
        "skill": "Read a map",
        "grade": "grade2",
    },
)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


def change_problem(raw: Path, pid: str, change: dict[str, Any]) -> None:
    problems = json.loads((raw / "problems.json").read_text())
    problems[pid].update(change)
    (raw / "problems.json").write_text(json.dumps(problems))


def test_hint_lecture_and_solution_stay_apart_and_questions_without_a_picture_are_left_out(raw: Path) -> None:
    assert converted("scienceqa", raw, "test") == ([MAGNETS, MAP], [])


def test_each_split_has_its_own_problems(raw: Path) -> None:
    assert [example.id for example in converted("scienceqa", raw, "train")[0]] == [
        "scienceqa/train/1",
        "scienceqa/train/3",
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer": 2}, "answer 2 is no index into 2 choices"),
        ({"answer": -1}, "Expected `int` >= 0 - at `$.answer`"),
        ({"choices": ["pull"]}, "Expected `array` of length >= 2 - at `$.choices`"),
        ({"hint": None}, "Expected `str`, got `null` - at `$.hint`"),
        ({"image": "../image.png"}, "at `$.image`"),
        ({"split": "val"}, "pid_splits.json lists it for test, problems.json for val"),
    ],
)
def test_broken_problems_are_rejected_with_the_reason(raw: Path, change: dict[str, Any], reason: str) -> None:
    change_problem(raw, "7", change)
    examples, rejected = converted("scienceqa", raw, "test")
    assert examples == [MAP]
    assert (rejected[0].file, rejected[0].record) == ("problems.json", "7")
    assert rejected[0].reason.endswith(reason)


def test_a_broken_problem_without_a_picture_is_rejected_not_left_out(raw: Path) -> None:
    change_problem(raw, "8", {"answer": 5})
    assert [reject.record for reject in converted("scienceqa", raw, "test")[1]] == ["8"]


def test_a_problem_without_the_key_image_is_rejected_not_left_out(raw: Path) -> None:
    problems = json.loads((raw / "problems.json").read_text())
    del problems["7"]["image"]
    (raw / "problems.json").write_text(json.dumps(problems))
    assert converted("scienceqa", raw, "test")[1][0].reason == "Object missing required field `image`"


def test_a_file_of_other_splits_is_an_error(raw: Path) -> None:
    (raw / "pid_splits.json").write_text('{"choose_txt_test": ["1"]}')
    with pytest.raises(UserError, match=r"pid_splits\.json: no key 'test', only choose_txt_test"):
        converted("scienceqa", raw, "test")


@pytest.mark.parametrize(("split", "pictures"), [("train", 13), ("val", 13), ("test", 15)])
def test_authentic_excerpt_converts_whole(split: str, pictures: int) -> None:
    examples, rejected = converted("scienceqa", sample("scienceqa"), split)
    assert rejected == []
    assert len(examples) == pictures


def test_authentic_record_by_hand() -> None:
    first = converted("scienceqa", sample("scienceqa"), "train")[0][0]
    assert (first.id, first.images) == ("scienceqa/train/1", ["train/1/image.png"])
    assert first.choices == ["West Virginia", "Louisiana", "Arizona", "Oklahoma"]
    assert (first.choice, first.answers, first.context) == (0, ["West Virginia"], None)
    assert first.lecture is not None
    assert first.lecture.startswith("Maps have four cardinal directions")
    assert len(first.rationales) == 1
    assert first.rationales[0].endswith("West Virginia is farthest north.")
    assert first.meta["skill"] == "Read a map: cardinal directions"
