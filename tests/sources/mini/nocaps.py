"""NoCaps in miniature: val with captions and domains (`write`) or its image info alone (`write_info`), and test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.sources.mini import write_json, write_picture

CAPTIONS = {
    0: ["A child stands in front of a shed.", "A toddler in a garden "],
    1: ["A tuba lies on a chair.", "A brass instrument"],
    2: ["An otter holds a seashell.", "The otter has a shell"],
}
DOMAINS = {0: "in-domain", 1: "near-domain", 2: "out-domain"}


def image(number: int, split: str) -> dict[str, Any]:
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
    images = [{**image(number, "val"), "domain": domain} for number, domain in DOMAINS.items()]
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
    images = [image(number, split) for number in CAPTIONS]
    write_json(root / f"nocaps_{split}_image_info.json", {"licenses": [], "info": {}, "images": images})
    write_pictures(root, split)


def write_pictures(root: Path, split: str) -> None:
    for number in CAPTIONS:
        write_picture(root / split / image(number, split)["file_name"], number)
