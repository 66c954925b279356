from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from instructkit import sources
from instructkit.data.examples import Example
from tests.sources import converted, sample, write_json
from tests.sources.test_textvqa import write_ocr, write_pictures

# TextCaps in miniature: all three splits on the pictures and OCR tokens of the miniature TextVQA.
CAPTIONS = {
    "00aa11bb22cc33dd": ["A mug says good morning.", "A white mug with words on it", "mug with 'good morning'"],
    "0e1f2a3b4c5d6e7f": ["Bus number 42 waits ", "A red 42 bus.", "The bus has the number 42."],
}


def records(split: str, first: int) -> list[dict[str, Any]]:
    """The entries of `data`: the first captions of all images, then the second ones, as in the release."""
    entries: list[dict[str, Any]] = []
    for place in range(3):
        for image, captions in CAPTIONS.items():
            words = [["<s>", *caption.lower().split(), "</s>"] for caption in captions]
            entry = {
                "image_id": image,
                "image_classes": ["Thing"],
                "image_width": 12,
                "image_height": 8,
                "set_name": split,
                "image_name": image,
                "image_path": f"{'test' if split == 'test' else 'train'}/{image}.jpg",
            }
            if split != "test":
                entry["caption_id"] = first + len(entries)
                entry["caption_str"] = captions[place]
                entry["caption_tokens"] = words[place]
                entry["reference_strs"] = captions
                entry["reference_tokens"] = words
            entries.append(entry)
    return entries[:2] if split == "test" else entries


def write(root: Path) -> None:
    """Write the release, its files directly in `root`."""
    for split, first in {"train": 100_000_000, "val": 200_000_000, "test": 300_000_000}.items():
        head = {"dataset_type": split, "dataset_name": "textcaps", "dataset_version": 0.1}
        write_json(root / f"TextCaps_0.1_{split}.json", {**head, "data": records(split, first)})
        write_ocr(root, split)
    write_pictures(root)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


def test_train_has_one_example_a_caption(raw: Path) -> None:
    examples, rejected = converted("textcaps", raw, "train")
    assert rejected == []
    assert [example.id for example in examples] == [f"textcaps/train/{100_000_000 + n}" for n in range(6)]
    assert examples[1] == Example(
        id="textcaps/train/100000001",
        images=["train_images/0e1f2a3b4c5d6e7f.jpg"],
        references=["Bus number 42 waits"],
    )
    assert examples[2] == Example(
        id="textcaps/train/100000002",
        images=["train_images/00aa11bb22cc33dd.jpg"],
        references=["A white mug with words on it"],
        ocr_tokens=["GOOD", "MORNING", "{25%}"],
    )


def test_val_has_one_example_an_image_with_all_captions(raw: Path) -> None:
    examples, rejected = converted("textcaps", raw, "val")
    assert rejected == []
    assert [(example.id, example.images) for example in examples] == [
        ("textcaps/val/00aa11bb22cc33dd", ["train_images/00aa11bb22cc33dd.jpg"]),
        ("textcaps/val/0e1f2a3b4c5d6e7f", ["train_images/0e1f2a3b4c5d6e7f.jpg"]),
    ]
    assert examples[1].references == ["Bus number 42 waits", "A red 42 bus.", "The bus has the number 42."]


def test_test_has_images_only(raw: Path) -> None:
    examples, rejected = converted("textcaps", raw, "test")
    assert rejected == []
    assert examples[1] == Example(id="textcaps/test/0e1f2a3b4c5d6e7f", images=["test_images/0e1f2a3b4c5d6e7f.jpg"])


def test_without_the_ocr_file_there_are_no_tokens(raw: Path) -> None:
    (raw / "TextVQA_Rosetta_OCR_v0.2_train.json").unlink()
    examples, rejected = converted("textcaps", raw, "train")
    assert rejected == []
    assert all(example.ocr_tokens == [] for example in examples)
    assert sources.module("textcaps").read(raw, "train").layout == "0.1, no OCR tokens"


@pytest.mark.parametrize(
    ("split", "change", "reason"),
    [
        ("train", {"caption_str": ""}, "$.record.caption_str"),
        ("train", {"caption_id": None}, "no caption_id or no caption_str"),
        ("train", {"set_name": "val"}, "is of the set 'val'"),
        ("train", {"image_id": 12}, "$.record.image_id"),
        ("val", {"reference_strs": []}, "caption_str is not among the reference_strs of its image"),
        ("val", {"reference_strs": ["A mug says good morning.", " "]}, "$.record.reference_strs[1]"),
        ("val", {"caption_str": None}, "no caption_id or no caption_str"),
    ],
)
def test_broken_records_are_rejected(raw: Path, split: str, change: dict[str, Any], reason: str) -> None:
    path = raw / f"TextCaps_0.1_{split}.json"
    content = json.loads(path.read_text())
    content["data"][0].update(change)
    path.write_text(json.dumps(content))
    examples, rejected = converted("textcaps", raw, split)
    assert len(examples) == (5 if split == "train" else 1)
    assert reason in rejected[0].reason


def test_authentic_excerpts() -> None:
    train, rejected = converted("textcaps", sample("textcaps"), "train")
    assert rejected == []
    assert len(train) == 50
    assert train[0].id == "textcaps/train/100000000"
    assert train[0].images == ["train_images/011e7e629fb9ae7b.jpg"]
    assert train[0].references == ["Five Listerine Zero mouthwash bottles on a store shelf"]
    val, rejected = converted("textcaps", sample("textcaps"), "val")
    assert rejected == []
    assert len(val) == 50
    assert (val[0].id, val[0].images) == ("textcaps/val/caef3d1e97c2cf15", ["train_images/caef3d1e97c2cf15.jpg"])
    assert len(val[0].references) == 5
    assert val[0].references[3] == "A book by Mark Hillary titled CEO sits on top of a box"
