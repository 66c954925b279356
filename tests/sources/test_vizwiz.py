from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from instructkit import sources
from instructkit.data.examples import Example
from tests.sources import converted, sample, write_json, write_picture

# VizWiz in miniature: all three splits of the release of 2020 (`write`) or val of that of 2018 (`write_2018`).
RECORDS: list[dict[str, Any]] = [
    {
        "question": "Which soup is in this can? ",
        "answers": ["tomato"] * 5 + ["tomato soup"] * 3 + ["unanswerable", "unsuitable"],
        "answer_type": "other",
        "answerable": 1,
    },
    {
        "question": "Can you read me this letter please?",
        "answers": ["unanswerable"] * 7 + ["unsuitable"] * 2 + ["dear"],
        "answer_type": "unanswerable",
        "answerable": 0,
    },
]


def entries_of(split: str, digits: int) -> list[dict[str, Any]]:
    """The entries of one split, whose photos have numbers of so many digits."""
    entries = []
    for number, record in enumerate(RECORDS):
        entry = {"image": f"VizWiz_{split}_{number:0{digits}}.jpg", "question": record["question"]}
        if split != "test":
            answers = [{"answer": text, "answer_confidence": "maybe"} for text in record["answers"]]
            entry |= {**record, "answers": answers}
        entries.append(entry)
    return entries


def write(root: Path) -> None:
    """Write the release of 2020, annotations directly in `root`, photos in a folder a split."""
    for split in ("train", "val", "test"):
        entries = entries_of(split, 8)
        write_json(root / f"{split}.json", entries)
        for number, entry in enumerate(entries):
            write_picture(root / split / entry["image"], number)


def write_2018(root: Path) -> None:
    """Write val of the release of 2018, in its customary folders."""
    entries = entries_of("val", 12)
    write_json(root / "Annotations" / "val.json", entries)
    for number, entry in enumerate(entries):
        write_picture(root / "Images" / entry["image"], number)


def test_unanswerable_questions_are_kept_and_marked(tmp_path: Path) -> None:
    write(tmp_path)
    examples, rejected = converted("vizwiz", tmp_path, "val")
    assert rejected == []
    assert examples == [
        Example(
            id="vizwiz/val/VizWiz_val_00000000",
            images=["VizWiz_val_00000000.jpg"],
            question="Which soup is in this can?",
            answers=["tomato"] * 5 + ["tomato soup"] * 3 + ["unanswerable", "unsuitable"],
            meta={"answer_type": "other", "answerable": "1"},
        ),
        Example(
            id="vizwiz/val/VizWiz_val_00000001",
            images=["VizWiz_val_00000001.jpg"],
            question="Can you read me this letter please?",
            answers=["unanswerable"] * 7 + ["unsuitable"] * 2 + ["dear"],
            meta={"answer_type": "unanswerable", "answerable": "0"},
        ),
    ]


def test_test_has_no_answers(tmp_path: Path) -> None:
    write(tmp_path)
    examples, rejected = converted("vizwiz", tmp_path, "test")
    assert rejected == []
    assert examples[0] == Example(
        id="vizwiz/test/VizWiz_test_00000000",
        images=["VizWiz_test_00000000.jpg"],
        question="Which soup is in this can?",
    )


def test_both_releases_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path / "new")
    write_2018(tmp_path / "old")
    new = sources.module("vizwiz").read(tmp_path / "new", "val")
    old = sources.module("vizwiz").read(tmp_path / "old", "val")
    assert (new.layout, new.media_root) == ("release of 2020", tmp_path / "new" / "val")
    assert (old.layout, old.media_root) == ("release of 2018", tmp_path / "old" / "Images")
    examples, rejected = converted("vizwiz", tmp_path / "old", "val")
    assert rejected == []
    assert [example.images[0] for example in examples] == ["VizWiz_val_000000000000.jpg", "VizWiz_val_000000000001.jpg"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answers": None}, "no answer that is not blank"),
        ({"answers": [{"answer": ""}] * 10}, "no answer that is not blank"),
        ({"answers": ["tomato"] * 10}, "$.answers[0]"),
        ({"answerable": "yes"}, "$.answerable"),
        ({"answerable": 2}, "$.answerable"),
        ({"question": ""}, "$.question"),
        ({"image": "val/VizWiz_val_00000000.jpg"}, "$.image"),
    ],
)
def test_broken_records_are_rejected(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    write(tmp_path)
    records = json.loads((tmp_path / "val.json").read_text())
    records[0].update(change)
    (tmp_path / "val.json").write_text(json.dumps(records))
    examples, rejected = converted("vizwiz", tmp_path, "val")
    assert [example.id for example in examples] == ["vizwiz/val/VizWiz_val_00000001"]
    assert reason in rejected[0].reason


def test_authentic_excerpt_of_2018() -> None:
    examples, rejected = converted("vizwiz", sample("vizwiz/2018_v2_release"), "val")
    assert rejected == []
    assert len(examples) == 50
    assert examples[0].id == "vizwiz/val/VizWiz_val_000000028000"
    assert examples[0].question == "What's this?"
    assert examples[0].answers[2:4] == ["beans", "unanswerable"]
    assert examples[0].meta == {"answer_type": "unanswerable", "answerable": "0"}


def test_authentic_records_of_2020_lie_beside_their_photos() -> None:
    examples, rejected = converted("vizwiz", sample("vizwiz/reconstructed"), "val")
    assert rejected == []
    assert len(examples) == 12
    assert examples[0].question == "What is the title of this book?"
    assert examples[0].answers == ["dog years", "dog years: memoir"] + ["dog years"] * 8
    assert examples[0].meta == {"answer_type": "other"}
    assert all((sample("vizwiz/images") / example.images[0]).is_file() for example in examples)


def test_authentic_test_excerpt() -> None:
    examples, rejected = converted("vizwiz", sample("vizwiz"), "test")
    assert rejected == []
    assert len(examples) == 50
    assert examples[13].question == "This piece of paper."
