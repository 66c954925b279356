from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instructkit import sources
from instructkit.examples import Example
from tests.sources import converted, sample
from tests.sources.mini import textvqa as mini

OCR = "TextVQA_Rosetta_OCR_v0.2_val.json"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    mini.write(tmp_path)
    return tmp_path


def edit(path: Path, change: Callable[[list[Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content["data"])
    path.write_text(json.dumps(content))


def test_whole_examples_with_ocr_tokens_as_they_are_but_for_blank_ones(raw: Path) -> None:
    assert converted("textvqa", raw, "val") == (
        [
            Example(
                id="textvqa/val/34602",
                images=["train_images/00aa11bb22cc33dd.jpg"],
                question="what is written on the mug?",
                answers=["good morning"] * 6 + ["morning", "good", "unanswerable", ""],
                ocr_tokens=["GOOD", "MORNING", "{25%}"],
            ),
            Example(
                id="textvqa/val/34603",
                images=["train_images/0e1f2a3b4c5d6e7f.jpg"],
                question="which number has the bus?",
                answers=["42"] * 9 + ["a2"],
            ),
        ],
        [],
    )


def test_layout_and_files_say_whether_there_are_tokens(raw: Path) -> None:
    reading = sources.module("textvqa").read(raw, "val")
    assert reading.layout == "0.5.1, Rosetta's OCR tokens"
    assert [path.name for path in reading.files] == ["TextVQA_0.5.1_val.json", OCR]
    (raw / OCR).unlink()
    reading = sources.module("textvqa").read(raw, "val")
    assert reading.layout == "0.5.1, no OCR tokens"
    assert [path.name for path in reading.files] == ["TextVQA_0.5.1_val.json"]
    examples, rejected = converted("textvqa", raw, "val")
    assert rejected == []
    assert [example.ocr_tokens for example in examples] == [[], []]


def test_test_has_no_answers_and_its_own_pictures(raw: Path) -> None:
    examples, rejected = converted("textvqa", raw, "test")
    assert rejected == []
    assert examples[0] == Example(
        id="textvqa/test/39602",
        images=["test_images/00aa11bb22cc33dd.jpg"],
        question="what is written on the mug?",
        ocr_tokens=["GOOD", "MORNING", "{25%}"],
    )


@pytest.mark.parametrize("change", [lambda data: data.pop(0), lambda data: data[0].update(ocr_tokens="GOOD")])
def test_a_picture_that_the_ocr_file_lacks_is_rejected(raw: Path, change: Callable[[list[Any]], Any]) -> None:
    edit(raw / OCR, change)
    examples, rejected = converted("textvqa", raw, "val")
    assert [example.id for example in examples] == ["textvqa/val/34603"]
    assert rejected[0].reason == f"{OCR} has no sound entry of this image_id"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answers": []}, "no answer that is not blank"),
        ({"answers": None}, "no answer that is not blank"),
        ({"answers": [""] * 10}, "no answer that is not blank"),
        ({"answers": [1, 2]}, "$.record.answers[0]"),
        ({"question": " "}, "$.record.question"),
        ({"image_id": "../a"}, "$.record.image_id"),
        ({"image_id": 5}, "$.record.image_id"),
        ({"question_id": "x"}, "$.record.question_id"),
        ({"set_name": "train"}, "is of the set 'train'"),
    ],
)
def test_broken_records_are_rejected(raw: Path, change: dict[str, Any], reason: str) -> None:
    edit(raw / "TextVQA_0.5.1_val.json", lambda data: data[0].update(change))
    examples, rejected = converted("textvqa", raw, "val")
    assert [example.id for example in examples] == ["textvqa/val/34603"]
    assert (rejected[0].record, reason in rejected[0].reason) == ("data[0]", True)


def test_authentic_excerpts() -> None:
    for split, first in {"train": "0", "val": "34602"}.items():
        examples, rejected = converted("textvqa", sample("textvqa"), split)
        assert rejected == []
        assert len(examples) == 50
        assert all(len(example.answers) == 10 for example in examples)
        assert examples[0].id == f"textvqa/{split}/{first}"
    assert examples[0].images == ["train_images/003a8ae2ef43b901.jpg"]
    assert examples[0].question == "what is the brand of this camera?"
    assert examples[0].answers[:4] == ["nous les gosses", "dakota", "clos culombu", "dakota digital"]
