from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instructkit import sources
from instructkit.data.examples import Example
from tests.sources import converted, sample, write_json, write_picture

# TextVQA in miniature: all three splits, Rosetta's OCR tokens, and the pictures.
QUESTIONS: list[dict[str, Any]] = [
    {
        "question": "what is written on the mug?",
        "image_id": "00aa11bb22cc33dd",
        "image_classes": ["Mug", "Table"],
        "image_width": 12,
        "image_height": 8,
        "answers": ["good morning"] * 6 + ["morning", "good", "unanswerable", ""],
        "question_tokens": ["what", "is", "written", "on", "the", "mug"],
    },
    {
        "question": "which number has the bus? ",
        "image_id": "0e1f2a3b4c5d6e7f",
        "image_classes": ["Bus"],
        "image_width": 12,
        "image_height": 8,
        "answers": ["42"] * 9 + ["a2"],
        "question_tokens": ["which", "number", "has", "the", "bus"],
    },
]
TOKENS = {"00aa11bb22cc33dd": ["GOOD", " ", "MORNING", "{25%}"], "0e1f2a3b4c5d6e7f": []}
FIRST = {"train": 0, "val": 34602, "test": 39602}


def write(root: Path) -> None:
    """Write the release, its files directly in `root`."""
    for split, first in FIRST.items():
        records = [{**entry, "question_id": first + n, "set_name": split} for n, entry in enumerate(QUESTIONS)]
        if split == "test":
            for record in records:
                del record["answers"]
        head = {"dataset_type": split, "dataset_name": "textvqa", "dataset_version": "0.5.1"}
        write_json(root / f"TextVQA_0.5.1_{split}.json", {**head, "data": records})
        write_ocr(root, split)
    write_pictures(root)


def write_ocr(root: Path, split: str) -> None:
    """Write Rosetta's file of one split."""
    entries = [
        {"image_id": image, "ocr_tokens": words, "ocr_info": [{"word": word, "bounding_box": {}} for word in words]}
        for image, words in TOKENS.items()
    ]
    name = f"TextVQA_Rosetta_OCR_v0.2_{split}.json"
    write_json(root / name, {"dataset_type": split, "dataset_version": "0.2", "data": entries})


def write_pictures(root: Path) -> None:
    for folder in ("train_images", "test_images"):
        for number, image in enumerate(TOKENS):
            write_picture(root / folder / f"{image}.jpg", number)


OCR = "TextVQA_Rosetta_OCR_v0.2_val.json"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write(tmp_path)
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
