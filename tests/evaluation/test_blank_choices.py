"""A blank option keeps its record and its place; it is neither shown nor chosen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instructkit.conversion.convert import convert
from instructkit.data.dataset import load_examples
from tests.evaluation.world import World
from tests.miniatures import write_release


def edited(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def blank_aokvqa(raw: Path) -> None:
    write_release("aokvqa", raw)
    edited(
        raw / "aokvqa_v1p0_val.json",
        lambda found: found[0]["choices"].__setitem__(1 - found[0]["correct_choice_idx"], ""),
    )


def blank_problem(raw: Path, split: str) -> None:
    """Blank a wrong option of the split's first problem that has a picture."""
    problems = json.loads((raw / "problems.json").read_text())
    pids = json.loads((raw / "pid_splits.json").read_text())[split]
    pid = next(pid for pid in pids if problems[pid].get("image", True))
    edited(raw / "problems.json", lambda found: found[pid]["choices"].__setitem__(1 - found[pid]["answer"], " "))


def blank_scienceqa(raw: Path) -> None:
    write_release("scienceqa", raw)
    blank_problem(raw, "test")


def blank_iconqa(raw: Path) -> None:
    write_release("iconqa", raw)
    blank_problem(raw, "choose_txt_test")


def blank_visdial(raw: Path) -> None:
    write_release("visdial", raw)
    answers = json.loads((raw / "visdial_1.0_val.json").read_text())["data"]["answers"]
    edited(
        raw / "visdial_1.0_val.json",
        lambda found: found["data"]["answers"].__setitem__(answers.index("i can't tell"), " "),
    )


@pytest.mark.parametrize(
    ("name", "split", "write"),
    [
        ("aokvqa_mc", "val", blank_aokvqa),
        ("scienceqa", "test", blank_scienceqa),
        ("iconqa", "choose_txt_test", blank_iconqa),
        ("visdial", "val", blank_visdial),
    ],
)
def test_a_blank_option_is_never_chosen(
    world: World, tmp_path: Path, name: str, split: str, write: Callable[[Path], None]
) -> None:
    (tmp_path / "raw").mkdir()
    write(tmp_path / "raw")
    outcome = convert(name.removesuffix("_mc"), tmp_path / "raw", tmp_path / "data", split=split)
    assert outcome.manifest.rejected == 0
    examples = {example.id: example for example in load_examples(outcome.folder)}
    blanks = [example for example in examples.values() if not all(map(str.strip, example.choices))]
    assert blanks
    found = world.evaluate(name, tmp_path / "run", data=str(tmp_path / "data"))
    (result,) = found.results
    assert result.errors == {}
    lines = (tmp_path / "run/evaluation" / name / "responses.jsonl").read_text().splitlines()
    answered = {line["example"]: line for line in map(json.loads, lines)}
    for example in blanks:
        line = answered[example.id]
        filled = [choice for choice in example.choices if choice.strip()]
        assert line["text"] in filled
        assert sorted(text for text, _ in line["ranked"]) == sorted(filled)
        assert line["expected"] == [example.choices[example.choice or 0]]
        if name == "visdial":
            assert len(line["prediction"]) == len(example.choices) == 100
            worst = min(score for _, score in line["ranked"])
            for choice, score in zip(example.choices, line["prediction"], strict=True):
                assert (score >= worst) == bool(choice.strip())
        else:
            letter = "abcdefgh"[example.choice or 0]
            assert f"({letter}) {example.choices[example.choice or 0]}" in line["prompt"]
