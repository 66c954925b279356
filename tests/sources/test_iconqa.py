from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from instructkit import sources
from instructkit.data.examples import Example
from instructkit.errors import UserError
from tests.sources import converted, sample, write_json, write_picture

# IconQA in miniature: `problems.json` with `pid_splits.json`, and a folder each problem, nine sets of one or two.
PROBLEMS: dict[str, dict[str, Any]] = {
    "choose_txt": {
        "question": "Is the number of snails even or odd?",
        "choices": ["odd", "even"],
        "answer": 1,
        "ques_type": "choose_txt",
        "grade": "grade1",
        "label": "A9",
    },
    "choose_img": {
        "question": "Which rope is longer?",
        "choices": ["choice_0.png", "choice_1.png", "choice_2.png"],
        "answer": 2,
        "ques_type": "choose_img",
        "grade": "prek",
        "label": "I2",
    },
    "fill_in_blank": {
        "question": "Use tiles to measure the rope. It is about (_) tiles long.",
        "answer": "7",
        "ques_type": "fill_in_blank",
        "grade": "kindergarten",
        "label": "T3",
    },
}
PARTS = ("train", "val", "test")


def write(root: Path) -> None:
    """Write the release; problem `n` of a set counts on over all sets from 1."""
    problems: dict[str, Any] = {}
    splits: dict[str, list[str]] = {}
    pid = 0
    for part in PARTS:
        for kind, problem in PROBLEMS.items():
            pids = splits[f"{kind}_{part}"] = []
            for _ in range(2):
                pid += 1
                pids.append(str(pid))
                problems[str(pid)] = {**problem, "split": part}
                folder = root / "iconqa" / part / kind / str(pid)
                write_json(folder / "data.json", problem)
                for number, name in enumerate(["image.png", *problem.get("choices", [])]):
                    if name.endswith(".png"):
                        write_picture(folder / name, pid + number)
    write_json(root / "problems.json", problems)
    write_json(root / "pid_splits.json", splits)


# Problems are numbered over train, val, test and in each over choose_txt, choose_img, fill_in_blank, two each.
SNAILS = Example(
    id="iconqa/choose_txt_test/13",
    images=["iconqa/test/choose_txt/13/image.png"],
    question="Is the number of snails even or odd?",
    answers=["even"],
    choices=["odd", "even"],
    choice=1,
    meta={"ques_type": "choose_txt", "grade": "grade1", "skill": "A9"},
)
ROPES = Example(
    id="iconqa/choose_img_test/15",
    images=[
        "iconqa/test/choose_img/15/image.png",
        "iconqa/test/choose_img/15/choice_0.png",
        "iconqa/test/choose_img/15/choice_1.png",
        "iconqa/test/choose_img/15/choice_2.png",
    ],
    question="Which rope is longer?",
    answers=["picture 3"],
    choices=["picture 1", "picture 2", "picture 3"],
    choice=2,
    meta={"ques_type": "choose_img", "grade": "prek", "skill": "I2"},
)
TILES = Example(
    id="iconqa/fill_in_blank_test/17",
    images=["iconqa/test/fill_in_blank/17/image.png"],
    question="Use tiles to measure the rope. It is about (_) tiles long.",
    answers=["7"],
    meta={"ques_type": "fill_in_blank", "grade": "kindergarten", "skill": "T3"},
)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


@pytest.mark.parametrize("expected", [SNAILS, ROPES, TILES])
@pytest.mark.parametrize("layout", ["problems.json", "a folder each problem, iconqa/test/{}"])
def test_both_layouts_give_the_same_examples(raw: Path, expected: Example, layout: str) -> None:
    split, kind = expected.id.split("/")[1], expected.meta["ques_type"]
    if layout != "problems.json":
        (raw / "problems.json").unlink()
    examples, rejected = converted("iconqa", raw, split)
    assert rejected == []
    assert examples[0] == expected
    assert len(examples) == 2
    assert sources.module("iconqa").read(raw, split).layout == layout.format(kind)


def test_folders_come_in_the_order_of_their_numbers(raw: Path) -> None:
    (raw / "problems.json").unlink()
    folder = raw / "iconqa" / "test" / "choose_txt"
    (folder / "13").rename(folder / "100")
    (folder / "14").rename(folder / "9")
    assert [example.id for example in converted("iconqa", raw, "choose_txt_test")[0]] == [
        "iconqa/choose_txt_test/9",
        "iconqa/choose_txt_test/100",
    ]


def test_folders_without_a_split_are_read_too(raw: Path) -> None:
    (raw / "iconqa" / "test" / "choose_txt").rename(raw / "choose_txt")
    (raw / "problems.json").unlink()
    examples, _ = converted("iconqa", raw, "choose_txt_test")
    assert examples[0].images == ["choose_txt/13/image.png"]


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [
        ("choose_txt", {"answer": 2}, "answer 2 is no index into 2 choices"),
        ("choose_txt", {"answer": "even"}, "answer 'even' is no index into 2 choices"),
        ("choose_txt", {"answer": -1}, "Expected `int` >= 0 - at `$.answer`"),
        ("choose_txt", {"choices": []}, "answer 1 is no index into 0 choices"),
        ("choose_txt", {"ques_type": "choose_img"}, "listed for choose_txt_test, but it is of choose_img_test"),
        ("choose_txt", {"split": "val"}, "listed for choose_txt_test, but it is of choose_txt_val"),
        ("choose_img", {"choices": ["a.png", "../b.png", "c.png"]}, r"\.(?:jpg|jpeg|png)\\Z'"),
        ("fill_in_blank", {"answer": 7}, "a blank to fill has no choices, and its answer is a text"),
        ("fill_in_blank", {"choices": ["7", "8"]}, "a blank to fill has no choices, and its answer is a text"),
    ],
)
def test_broken_problems_are_rejected_with_the_reason(
    raw: Path, kind: str, change: dict[str, Any], reason: str
) -> None:
    problems = json.loads((raw / "problems.json").read_text())
    pid = json.loads((raw / "pid_splits.json").read_text())[f"{kind}_test"][0]
    problems[pid].update(change)
    (raw / "problems.json").write_text(json.dumps(problems))
    examples, rejected = converted("iconqa", raw, f"{kind}_test")
    assert (len(examples), len(rejected)) == (1, 1)
    assert (rejected[0].file, rejected[0].record) == ("problems.json", pid)
    assert rejected[0].reason.endswith(reason)


def test_a_listed_id_without_a_problem_is_rejected(raw: Path) -> None:
    problems = json.loads((raw / "problems.json").read_text())
    del problems["14"]
    (raw / "problems.json").write_text(json.dumps(problems))
    examples, rejected = converted("iconqa", raw, "choose_txt_test")
    assert examples == [SNAILS]
    assert rejected[0].reason == "pid_splits.json lists this id, problems.json has no such problem"


def test_without_either_layout_the_error_names_both(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of iconqa/test/choose_txt, .* problems\.json"):
        converted("iconqa", tmp_path, "choose_txt_test")


def test_an_id_that_is_listed_twice_is_an_error(raw: Path) -> None:
    splits = json.loads((raw / "pid_splits.json").read_text())
    splits["choose_txt_test"] *= 2
    (raw / "pid_splits.json").write_text(json.dumps(splits))
    with pytest.raises(UserError, match="lists an id twice"):
        converted("iconqa", raw, "choose_txt_test")


@pytest.mark.parametrize("kind", ["choose_txt", "choose_img", "fill_in_blank"])
def test_authentic_excerpts_convert_whole_with_their_pictures(kind: str) -> None:
    raw = sample("iconqa")
    examples, rejected = converted("iconqa", raw, f"{kind}_test")
    assert rejected == []
    assert len(examples) == 15
    assert all((raw / path).is_file() for example in examples for path in example.images)


def test_authentic_records_by_hand() -> None:
    raw = sample("iconqa")
    assert converted("iconqa", raw, "choose_txt_test")[0][1] == Example(
        id="iconqa/choose_txt_test/18",
        images=["choose_txt/18/image.png"],
        question="Are there enough forks for every plate?",
        answers=["no"],
        choices=["yes", "no"],
        choice=1,
        meta={"ques_type": "choose_txt", "grade": "kindergarten", "skill": "G5"},
    )
    comb = next(example for example in converted("iconqa", raw, "choose_img_test")[0] if example.id.endswith("/121"))
    assert comb.question == "Which comb is shorter?"
    assert comb.images == [f"choose_img/121/{name}.png" for name in ("image", "choice_0", "choice_1")]
    assert (comb.choice, comb.answers) == (1, ["picture 2"])
    clock = next(
        example for example in converted("iconqa", raw, "fill_in_blank_test")[0] if example.id.endswith("/1422")
    )
    assert (clock.answers, clock.choices, clock.choice) == (["quarter"], [], None)
