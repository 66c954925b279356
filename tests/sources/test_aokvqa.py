from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from instructkit.data.examples import Example
from tests.sources import converted, sample, write_json, write_picture

# A-OKVQA in miniature: all three splits, and their pictures.
RECORDS: list[dict[str, Any]] = [
    {
        "image_id": 785,
        "question_id": "3aBcDeFgHiJkLmNoPqRsTu",
        "question": "What keeps the woman warm? ",
        "choices": ["stove", "jacket", "blanket", "sun"],
        "correct_choice_idx": 1,
        "direct_answers": [
            "jacket",
            "coat",
            "jacket",
            "jacket",
            "her coat",
            "jacket",
            "clothes",
            "coat",
            "coat",
            "coat",
        ],
        "difficult_direct_answer": False,
        "rationales": ["She wears a thick jacket on the slope.", "Snow lies around her.", "A jacket keeps warm."],
    },
    {
        "image_id": 802,
        "question_id": "4bCdEfGhIjKlMnOpQrStUv",
        "question": "Why is the freezer door open?",
        "choices": ["broken", "cleaning", "cooling", "unknown"],
        "correct_choice_idx": 0,
        "direct_answers": ["broken"] * 5 + ["cleaning"] * 3 + ["to air", "is old"],
        "difficult_direct_answer": True,
        "rationales": ["Its hinge hangs loose.", "Nobody is cleaning.", "It is old."],
    },
]
UNANSWERED = ("image_id", "question_id", "question", "choices")


def write(root: Path) -> None:
    """Write the release, its files directly in `root`."""
    for split in ("train", "val", "test"):
        records = [{"split": split, **record} for record in RECORDS]
        if split == "test":
            records = [{"split": split, **{key: record[key] for key in UNANSWERED}} for record in RECORDS]
        write_json(root / f"aokvqa_v1p0_{split}.json", records)
        for number in (785, 802):
            write_picture(root / f"{split}2017" / f"{number:012d}.jpg", number)


def test_both_kinds_of_answers_are_kept(tmp_path: Path) -> None:
    write(tmp_path)
    examples, rejected = converted("aokvqa", tmp_path, "train")
    assert rejected == []
    assert examples[0] == Example(
        id="aokvqa/train/3aBcDeFgHiJkLmNoPqRsTu",
        images=["train2017/000000000785.jpg"],
        question="What keeps the woman warm?",
        answers=["jacket", "coat", "jacket", "jacket", "her coat", "jacket", "clothes", "coat", "coat", "coat"],
        choices=["stove", "jacket", "blanket", "sun"],
        choice=1,
        rationales=["She wears a thick jacket on the slope.", "Snow lies around her.", "A jacket keeps warm."],
        meta={"difficult_direct_answer": "false"},
    )
    assert examples[1].meta == {"difficult_direct_answer": "true"}


def test_test_has_options_only(tmp_path: Path) -> None:
    write(tmp_path)
    examples, rejected = converted("aokvqa", tmp_path, "test")
    assert rejected == []
    assert examples[1] == Example(
        id="aokvqa/test/4bCdEfGhIjKlMnOpQrStUv",
        images=["test2017/000000000802.jpg"],
        question="Why is the freezer door open?",
        choices=["broken", "cleaning", "cooling", "unknown"],
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"correct_choice_idx": 4}, "correct_choice_idx 4 points to none of 4 choices"),
        ({"correct_choice_idx": None}, "correct_choice_idx None points to none of 4 choices"),
        ({"correct_choice_idx": -1}, "$.correct_choice_idx"),
        ({"direct_answers": []}, "no direct answer that is not blank"),
        ({"direct_answers": "jacket"}, "$.direct_answers"),
        ({"choices": ["jacket"]}, "$.choices"),
        ({"question": ""}, "$.question"),
        ({"question_id": "a/b"}, "$.question_id"),
        ({"split": "val"}, "is of the split 'val'"),
        ({"image_id": "785"}, "$.image_id"),
    ],
)
def test_broken_records_are_rejected(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    write(tmp_path)
    path = tmp_path / "aokvqa_v1p0_train.json"
    records = json.loads(path.read_text())
    records[0].update(change)
    path.write_text(json.dumps(records))
    examples, rejected = converted("aokvqa", tmp_path, "train")
    assert [example.id for example in examples] == ["aokvqa/train/4bCdEfGhIjKlMnOpQrStUv"]
    assert reason in rejected[0].reason


def test_authentic_training_record() -> None:
    examples, rejected = converted("aokvqa", sample("aokvqa/reconstructed"), "train")
    assert rejected == []
    (example,) = examples
    assert example.id == "aokvqa/train/22MexNkBPpdZGX6sxbxVBH"
    assert example.images == ["train2017/000000299207.jpg"]
    assert example.question == "What is the man by the bags awaiting?"
    assert example.choice is not None
    assert example.choices[example.choice] == "cab"
    assert example.answers == ["ride", "ride", "bus", "taxi", "travelling", "traffic", "taxi", "cab", "cab", "his ride"]
    assert len(example.rationales) == 3


def test_authentic_records_without_optional_keys() -> None:
    examples, rejected = converted("aokvqa", sample("aokvqa/reconstructed"), "val")
    assert rejected == []
    assert len(examples) == 8
    assert (examples[0].choices, examples[0].choice) == (["one", "ten", "nine", "thirty"], 3)
    assert all((len(example.answers), example.rationales, example.meta) == (10, [], {}) for example in examples)
