from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instructkit import sources
from instructkit.data.examples import Example
from instructkit.errors import UserError
from tests.sources import converted, sample, write_json, write_picture

# COCO Caption in miniature: Karpathy's file (`write`), BLIP's lists (`write_lists`), COCO's own (`write_official`).
CAPTIONS: dict[int, list[str]] = {
    9: ["Bowls of food stand on a tray. ", "A tray with four bowls.", "Lunch, in four bowls"],
    25: ["A giraffe eats from a tree.", "Giraffes near some trees."],
    42: ["Shoes on a rack", "A dog sleeps among shoes."],
    73: ["Two motorbikes in a garage.", "A shed with two motorbikes"],
    74: ["A dog lies in the street.", "The white dog rests near a bicycle."],
}
SPLITS = {9: "train", 25: "restval", 42: "val", 73: "test", 74: "test"}
SUBSETS = {9: "train2014", 25: "val2014", 42: "val2014", 73: "val2014", 74: "val2014"}


def file_name(number: int) -> str:
    return f"COCO_{SUBSETS[number]}_{number:012d}.jpg"


def karpathy(number: int, place: int) -> dict[str, Any]:
    """An entry of `images` of `dataset_coco.json`."""
    sentences = [
        {"tokens": text.lower().strip(" .").split(), "raw": text, "imgid": place, "sentid": number * 10 + n}
        for n, text in enumerate(CAPTIONS[number])
    ]
    return {
        "filepath": SUBSETS[number],
        "sentids": [sentence["sentid"] for sentence in sentences],
        "filename": file_name(number),
        "imgid": place,
        "split": SPLITS[number],
        "sentences": sentences,
        "cocoid": number,
    }


def write(root: Path) -> None:
    """Write the release with Karpathy's splits."""
    images = [karpathy(number, place) for place, number in enumerate(CAPTIONS)]
    write_json(root / "dataset_coco.json", {"images": images, "dataset": "coco"})
    write_pictures(root)


def write_lists(root: Path) -> None:
    """Write the same as BLIP's lists."""
    paths = {number: f"{SUBSETS[number]}/{file_name(number)}" for number in CAPTIONS}
    train = [
        {"caption": text, "image": paths[number], "image_id": f"coco_{number}"}
        for number in (9, 25)
        for text in CAPTIONS[number]
    ]
    write_json(root / "coco_karpathy_train.json", train)
    for split in ("val", "test"):
        entries = [{"image": paths[n], "caption": CAPTIONS[n]} for n in CAPTIONS if SPLITS[n] == split]
        write_json(root / f"coco_karpathy_{split}.json", entries)
    write_pictures(root)


def write_official(root: Path, year: int = 2014) -> None:
    """Write COCO's own files: image 9 is train, the others val; captions in another order than images."""
    for subset, numbers in {"train": [9], "val": [25, 42, 73, 74]}.items():
        names = {n: f"{n:012d}.jpg" if year == 2017 else file_name(n) for n in numbers}
        images = [{"license": 3, "file_name": names[n], "height": 8, "width": 12, "id": n} for n in numbers]
        captions = [
            {"image_id": n, "id": n * 10 + place, "caption": text}
            for n in reversed(numbers)
            for place, text in enumerate(CAPTIONS[n])
        ]
        content = {"info": {"year": year}, "images": images, "licenses": [], "annotations": captions}
        write_json(root / "annotations" / f"captions_{subset}{year}.json", content)
        for n in numbers:
            write_picture(root / f"{subset}{year}" / names[n], n)


def write_pictures(root: Path) -> None:
    for number in CAPTIONS:
        write_picture(root / SUBSETS[number] / file_name(number), number)


TEST = [
    Example(
        id="coco_caption/test/73",
        images=["val2014/COCO_val2014_000000000073.jpg"],
        references=["Two motorbikes in a garage.", "A shed with two motorbikes"],
    ),
    Example(
        id="coco_caption/test/74",
        images=["val2014/COCO_val2014_000000000074.jpg"],
        references=["A dog lies in the street.", "The white dog rests near a bicycle."],
    ),
]
TRAIN = [
    ("train2014/COCO_train2014_000000000009.jpg", "Bowls of food stand on a tray."),
    ("train2014/COCO_train2014_000000000009.jpg", "A tray with four bowls."),
    ("train2014/COCO_train2014_000000000009.jpg", "Lunch, in four bowls"),
    ("val2014/COCO_val2014_000000000025.jpg", "A giraffe eats from a tree."),
    ("val2014/COCO_val2014_000000000025.jpg", "Giraffes near some trees."),
]


def edit_karpathy(raw: Path, change: Callable[[list[Any]], Any]) -> None:
    content = json.loads((raw / "dataset_coco.json").read_text())
    change(content["images"])
    (raw / "dataset_coco.json").write_text(json.dumps(content))


def layout(raw: Path, split: str) -> str:
    return sources.module("coco_caption").read(raw, split).layout


def test_karpathy_train_is_train_and_restval_with_one_example_a_caption(tmp_path: Path) -> None:
    write(tmp_path)
    examples, rejected = converted("coco_caption", tmp_path, "train")
    assert rejected == []
    assert [(example.images[0], example.references[0]) for example in examples] == TRAIN
    assert [example.id for example in examples] == [f"coco_caption/train/{n}" for n in (90, 91, 92, 250, 251)]
    assert layout(tmp_path, "train") == "karpathy"


def test_evaluation_has_one_example_an_image_in_every_karpathy_layout(tmp_path: Path) -> None:
    for name, lay_out in {"karpathy": write, "karpathy lists": write_lists}.items():
        lay_out(tmp_path / name)
        assert converted("coco_caption", tmp_path / name, "test") == (TEST, [])
        assert layout(tmp_path / name, "test") == name
        val, _ = converted("coco_caption", tmp_path / name, "val")
        assert [example.id for example in val] == ["coco_caption/val/42"]


def test_lists_give_one_example_an_entry(tmp_path: Path) -> None:
    write_lists(tmp_path)
    examples, rejected = converted("coco_caption", tmp_path, "train")
    assert rejected == []
    assert [(example.images[0], example.references[0]) for example in examples] == TRAIN
    assert [example.id for example in examples] == [f"coco_caption/train/{n}" for n in range(5)]


@pytest.mark.parametrize(("year", "name"), [(2014, "COCO_val2014_000000000074.jpg"), (2017, "000000000074.jpg")])
def test_official_files_join_captions_with_their_images(tmp_path: Path, year: int, name: str) -> None:
    write_official(tmp_path, year)
    examples, rejected = converted("coco_caption", tmp_path, "val")
    assert rejected == []
    assert [example.id for example in examples] == [f"coco_caption/val/{n}" for n in (25, 42, 73, 74)]
    assert (examples[3].images, examples[3].references) == ([f"val{year}/{name}"], TEST[1].references)
    train, _ = converted("coco_caption", tmp_path, "train")
    assert [example.id for example in train] == [
        "coco_caption/train/90",
        "coco_caption/train/91",
        "coco_caption/train/92",
    ]
    reading = sources.module("coco_caption").read(tmp_path, "val")
    assert reading.layout == f"official {year}"
    assert "Karpathy" in reading.warnings[0]


def test_karpathys_file_goes_before_cocos_own(tmp_path: Path) -> None:
    write_official(tmp_path)
    write(tmp_path)
    assert layout(tmp_path, "train") == "karpathy"


def test_images_may_lie_in_images(tmp_path: Path) -> None:
    write(tmp_path)
    assert sources.module("coco_caption").read(tmp_path, "train").media_root == tmp_path
    (tmp_path / "images").mkdir()
    assert sources.module("coco_caption").read(tmp_path, "train").media_root == tmp_path / "images"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"split": "trian"}, "split 'trian' is none of train, restval, val, test"),
        ({"split": 3}, "Expected `str`, got `int` - at `$.split`"),
        ({"sentences": []}, "no captions"),
        ({"sentences": [{"raw": " ", "sentid": 1}]}, "Expected `str` matching regex '\\\\S' - at `$.sentences[0].raw`"),
        ({"cocoid": None}, "an image of COCO needs cocoid and filepath"),
        ({"cocoid": 10}, "cocoid 10 is not the number in COCO_train2014_000000000009.jpg"),
        ({"filename": "../9.jpg"}, "filename"),
    ],
)
def test_broken_images_are_rejected(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    write(tmp_path)
    edit_karpathy(tmp_path, lambda images: images[0].update(change))
    examples, rejected = converted("coco_caption", tmp_path, "train")
    assert [example.id for example in examples] == ["coco_caption/train/250", "coco_caption/train/251"]
    assert rejected[0].record == "images[0]"
    assert reason in rejected[0].reason


def test_official_captions_and_images_without_partner_are_rejected(tmp_path: Path) -> None:
    write_official(tmp_path)
    path = tmp_path / "annotations/captions_val2014.json"
    content = json.loads(path.read_text())
    content["images"][0]["id"] = 26
    content["annotations"][0]["image_id"] = "74"
    path.write_text(json.dumps(content))
    examples, rejected = converted("coco_caption", tmp_path, "val")
    assert [example.id for example in examples] == [f"coco_caption/val/{n}" for n in (42, 73, 74)]
    assert [(reject.record, reject.reason) for reject in rejected] == [
        ("images[0]", "no captions"),
        ("annotations[0]", "Expected `int`, got `str` - at `$.annotations[0].image_id`"),
        ("annotations[6]", "no image has this image_id, or another image has it too"),
        ("annotations[7]", "no image has this image_id, or another image has it too"),
    ]


def test_evaluation_lists_need_all_captions_of_an_image(tmp_path: Path) -> None:
    write_lists(tmp_path)
    (tmp_path / "coco_karpathy_train.json").rename(tmp_path / "coco_karpathy_test.json")
    examples, rejected = converted("coco_caption", tmp_path, "test")
    assert (len(examples), len(rejected)) == (0, 5)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset_coco\.json.*captions_train2017\.json"):
        converted("coco_caption", tmp_path, "train")


def test_authentic_karpathy_record() -> None:
    examples, rejected = converted("coco_caption", sample("coco_caption/reconstructed"), "test")
    assert rejected == []
    assert [example.id for example in examples] == ["coco_caption/test/391895"]
    assert examples[0].images == ["val2014/COCO_val2014_000000391895.jpg"]
    assert len(examples[0].references) == 5
    assert examples[0].references[2] == "A man riding on the back of a motorcycle."
    assert not examples[0].references[0].endswith(" ")


@pytest.mark.parametrize(("year", "whole"), [(2014, {"331352": 4}), (2017, {"331352": 5, "289393": 4})])
def test_authentic_official_excerpts(tmp_path: Path, year: int, whole: dict[str, int]) -> None:
    """Their lists were cut separately: what has lost its partner is broken, what has kept it converts."""
    (tmp_path / f"captions_val{year}.json").symlink_to(sample(f"coco_caption/captions_val{year}.json"))
    examples, rejected = converted("coco_caption", tmp_path, "val")
    assert {example.id.rsplit("/", 1)[1]: len(example.references) for example in examples} == whole
    assert {reject.reason for reject in rejected} == {
        "no captions",
        "no image has this image_id, or another image has it too",
    }
    assert len(rejected) == (100 - len(whole)) + (100 - sum(whole.values()))
    name = "COCO_val2014_000000331352.jpg" if year == 2014 else "000000331352.jpg"
    first = next(example for example in examples if example.id.endswith("/331352"))
    assert first.images == [f"val{year}/{name}"]
    assert first.references[0] == "A small closed toilet in a cramped space."
