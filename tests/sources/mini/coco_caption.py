"""COCO Caption in miniature: Karpathy's file (`write`), BLIP's lists (`write_lists`), COCO's own (`write_official`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.sources.mini import write_json, write_picture

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
