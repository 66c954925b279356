"""TextCaps in miniature: all three splits on the pictures and OCR tokens of the miniature TextVQA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.sources.mini import textvqa, write_json

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
        textvqa.write_ocr(root, split)
    textvqa.write_pictures(root)
