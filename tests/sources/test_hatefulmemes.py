from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from instructkit import sources
from instructkit.conversion.convert import convert
from instructkit.data.examples import Example, problem
from tests.sources import converted, write_lines, write_picture

# Hateful Memes in miniature, the five files of phase 2; harmless texts of our own, labels at random.
LINES: list[dict[str, Any]] = [
    {"id": 1235, "img": "img/01235.png", "label": 0, "text": "when the cake is {done} at last"},
    {"id": 42953, "img": "img/42953.png", "label": 1, "text": "nobody likes mondays"},
]


def write(root: Path) -> None:
    """Write the release; the test files have no labels."""
    for split in ("train", "dev_seen", "dev_unseen"):
        write_lines(root / f"{split}.jsonl", LINES)
    unlabelled = [{key: value for key, value in line.items() if key != "label"} for line in LINES]
    for split in ("test_seen", "test_unseen"):
        write_lines(root / f"{split}.jsonl", unlabelled)
    for number, line in enumerate(LINES):
        write_picture(root / line["img"], number)


CAKE = Example(
    id="hatefulmemes/dev_seen/1235",
    images=["img/01235.png"],
    context="when the cake is {done} at last",
    answers=["no"],
    choices=["no", "yes"],
    choice=0,
)
MONDAYS = Example(
    id="hatefulmemes/dev_seen/42953",
    images=["img/42953.png"],
    context="nobody likes mondays",
    answers=["yes"],
    choices=["no", "yes"],
    choice=1,
)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


def test_the_text_on_the_meme_and_its_label(raw: Path) -> None:
    assert converted("hatefulmemes", raw, "dev_seen") == ([CAKE, MONDAYS], [])


@pytest.mark.parametrize("ids", [["01235", "42953"], ["1235", 42953], ["0000001235", "042953"]])
def test_ids_as_texts_give_the_same_examples(raw: Path, ids: list[Any]) -> None:
    write_lines(raw / "dev_seen.jsonl", [{**line, "id": given} for line, given in zip(LINES, ids, strict=True)])
    assert converted("hatefulmemes", raw, "dev_seen") == ([CAKE, MONDAYS], [])


def test_one_meme_under_both_forms_of_its_id_is_a_repeat(raw: Path) -> None:
    write_lines(raw / "dev_seen.jsonl", [LINES[0], {**LINES[0], "id": "01235"}])
    outcome = convert("hatefulmemes", raw, raw / "out")
    assert (outcome.manifest.examples, outcome.manifest.rejected) == (1, 1)


@pytest.mark.parametrize(("split", "name"), [("dev_seen", "dev"), ("test_seen", "test")])
def test_phase_1_has_other_names_for_the_same_sets(raw: Path, split: str, name: str) -> None:
    assert sources.module("hatefulmemes").read(raw, split).layout == "phase 2"
    (raw / f"{split}.jsonl").rename(raw / f"{name}.jsonl")
    assert sources.module("hatefulmemes").read(raw, split).layout == "phase 1"
    assert [example.id for example in converted("hatefulmemes", raw, split)[0]] == [
        f"hatefulmemes/{split}/1235",
        f"hatefulmemes/{split}/42953",
    ]


def test_test_memes_without_labels_have_no_answer(raw: Path) -> None:
    examples, rejected = converted("hatefulmemes", raw, "test_unseen")
    assert rejected == []
    assert (examples[1].answers, examples[1].choice, examples[1].choices) == ([], None, ["no", "yes"])


def test_test_memes_with_labels_keep_them(raw: Path) -> None:
    write_lines(raw / "test_seen.jsonl", LINES)
    assert [example.choice for example in converted("hatefulmemes", raw, "test_seen")[0]] == [0, 1]


def test_a_meme_without_a_label_is_unusable_outside_the_test_sets(raw: Path) -> None:
    write_lines(raw / "dev_seen.jsonl", [{"id": 1235, "img": "img/01235.png", "text": "when the cake is done"}])
    examples, rejected = converted("hatefulmemes", raw, "dev_seen")
    reasons = [problem(example, "classification") for example in examples] + [reject.reason for reject in rejected]
    assert reasons == ["has no answer"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"label": 2}, "Expected `int` <= 1 - at `$.label`"),
        ({"label": -1}, "Expected `int` >= 0 - at `$.label`"),
        ({"label": "0"}, "Expected `int | null`, got `str` - at `$.label`"),
        ({"text": " "}, "at `$.text`"),
        ({"img": "01235.png"}, "at `$.img`"),
        ({"img": "img/../01235.png"}, "at `$.img`"),
        ({"id": None}, "Expected `int | str`, got `null` - at `$.id`"),
        ({"id": -1}, "Expected `int` >= 0 - at `$.id`"),
        ({"id": "1235a"}, "at `$.id`"),
        ({"id": "-1235"}, "at `$.id`"),
        ({"id": " 1235"}, "at `$.id`"),
        ({"id": "1235\n"}, "at `$.id`"),
        ({"id": "१२३"}, "at `$.id`"),
        ({"id": ""}, "at `$.id`"),
        ({"id": "9" * 5000}, "at `$.id`"),
        ({"id": 1.5}, "Expected `int | str`, got `float` - at `$.id`"),
    ],
)
def test_broken_lines_are_rejected_with_the_reason(raw: Path, change: dict[str, Any], reason: str) -> None:
    write_lines(raw / "dev_seen.jsonl", [{**LINES[0], **change}, LINES[1]])
    examples, rejected = converted("hatefulmemes", raw, "dev_seen")
    assert examples == [MONDAYS]
    assert (rejected[0].file, rejected[0].record) == ("dev_seen.jsonl", "line 1")
    assert rejected[0].reason.endswith(reason)
