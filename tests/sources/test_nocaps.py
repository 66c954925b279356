from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instructkit import sources
from instructkit.data.examples import Example
from tests.sources import converted, sample, write_json, write_picture

# NoCaps in miniature: val with captions and domains (`write`) or its image info alone (`write_info`), and test.
CAPTIONS = {
    0: ["A child stands in front of a shed.", "A toddler in a garden "],
    1: ["A tuba lies on a chair.", "A brass instrument"],
    2: ["An otter holds a seashell.", "The otter has a shell"],
}
DOMAINS = {0: "in-domain", 1: "near-domain", 2: "out-domain"}


def entry_of(number: int, split: str) -> dict[str, Any]:
    """An entry of `images` without the domain."""
    name = f"{number:04x}aa20870209ff"
    return {
        "id": number,
        "open_images_id": name,
        "height": 8,
        "width": 12,
        "coco_url": f"https://pictures.example/nocaps/{split}/{name}.jpg",
        "file_name": f"{name}.jpg",
        "license": 0,
        "date_captured": "2018-11-06 11:04:33",
    }


def write(root: Path) -> None:
    """Write the release: val with captions, and the image info of test."""
    images = [{**entry_of(number, "val"), "domain": domain} for number, domain in DOMAINS.items()]
    captions = [
        {"image_id": number, "id": number * 2 + place, "caption": text}
        for place in range(2)
        for number, text in ((number, texts[place]) for number, texts in CAPTIONS.items())
    ]
    content = {"licenses": [], "info": {"version": "0.1"}, "images": images, "annotations": captions}
    write_json(root / "nocaps_val_4500_captions.json", content)
    write_info(root, "test")
    write_pictures(root, "val")


def write_info(root: Path, split: str) -> None:
    """Write the image info of a split, which has neither captions nor domains."""
    images = [entry_of(number, split) for number in CAPTIONS]
    write_json(root / f"nocaps_{split}_image_info.json", {"licenses": [], "info": {}, "images": images})
    write_pictures(root, split)


def write_pictures(root: Path, split: str) -> None:
    for number in CAPTIONS:
        write_picture(root / split / entry_of(number, split)["file_name"], number)


def test_val_has_captions_and_domains(tmp_path: Path) -> None:
    write(tmp_path)
    examples, rejected = converted("nocaps", tmp_path, "val")
    assert rejected == []
    assert examples[0] == Example(
        id="nocaps/val/0",
        images=["val/0000aa20870209ff.jpg"],
        references=["A child stands in front of a shed.", "A toddler in a garden"],
        meta={"domain": "in-domain"},
    )
    assert [example.meta["domain"] for example in examples] == ["in-domain", "near-domain", "out-domain"]
    assert [len(example.references) for example in examples] == [2, 2, 2]


def test_a_file_without_domains_converts(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "nocaps_val_4500_captions.json"
    content = json.loads(path.read_text())
    for image in content["images"]:
        del image["domain"]
    path.write_text(json.dumps(content))
    examples, rejected = converted("nocaps", tmp_path, "val")
    assert rejected == []
    assert [example.meta for example in examples] == [{}, {}, {}]


def test_test_and_image_info_have_images_only(tmp_path: Path) -> None:
    write_info(tmp_path, "val")
    write_info(tmp_path, "test")
    for split in ("val", "test"):
        examples, rejected = converted("nocaps", tmp_path, split)
        assert rejected == []
        assert examples[2] == Example(id=f"nocaps/{split}/2", images=[f"{split}/0002aa20870209ff.jpg"])
    reading = sources.module("nocaps").read(tmp_path, "val")
    assert reading.layout == "image info"
    assert reading.warnings == ["nocaps_val_image_info.json has no captions to score against"]
    assert sources.module("nocaps").read(tmp_path, "test").warnings == []


def test_captions_go_before_image_info(tmp_path: Path) -> None:
    write_info(tmp_path, "val")
    write(tmp_path)
    assert sources.module("nocaps").read(tmp_path, "val").layout == "captions"


@pytest.mark.parametrize(
    ("change", "rejects"),
    [
        (lambda file: file["images"][0].update(file_name="val/a.jpg"), 1),
        (lambda file: file["images"][0].update(domain=1), 1),
        (lambda file: file["annotations"][0].update(caption=" "), 1),
        (lambda file: file["annotations"][0].update(image_id=7), 1),
        (lambda file: file["images"].pop(0), 2),
        (lambda file: file.update(annotations=[]), 3),
    ],
)
def test_broken_records_are_rejected(tmp_path: Path, change: Callable[[Any], Any], rejects: int) -> None:
    write(tmp_path)
    path = tmp_path / "nocaps_val_4500_captions.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    examples, rejected = converted("nocaps", tmp_path, "val")
    assert len(rejected) == rejects
    assert all(example.references and example.meta for example in examples)


def test_authentic_captioned_image() -> None:
    examples, rejected = converted("nocaps", sample("nocaps/reconstructed"), "val")
    assert rejected == []
    assert examples == [
        Example(
            id="nocaps/val/0",
            images=["val/0013ea2087020901.jpg"],
            references=["A baby is standing in front of a house."],
        )
    ]


def test_authentic_image_info() -> None:
    examples, rejected = converted("nocaps", sample("nocaps"), "val")
    assert rejected == []
    assert len(examples) == 50
    assert examples[49] == Example(id="nocaps/val/49", images=["val/02c94402476ac94c.jpg"])
