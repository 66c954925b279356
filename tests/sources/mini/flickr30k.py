"""Flickr30K in miniature: Karpathy's file and the original one (`write`), or BLIP's lists (`write_lists`)."""

from __future__ import annotations

from pathlib import Path

from tests.sources.mini import write_json, write_picture

CAPTIONS = {
    "1000000001": ["Two hikers rest on a rock.", "Hikers sit high above a valley ."],
    "1000000002": ["A girl rides a horse.", "A horse carries a girl ."],
    "1000000003": ["A cook tastes the soup.", "The man in white holds a spoon ."],
    "1000000004": ["A crowd claps.", "People clap at a concert ."],
}
SPLITS = {"1000000001": "train", "1000000002": "val", "1000000003": "test", "1000000004": "test"}


def write(root: Path) -> None:
    """Write the release, its files directly in `root`."""
    images = []
    lines = []
    for place, (name, captions) in enumerate(CAPTIONS.items()):
        sentences = [
            {"tokens": text.lower().rstrip(" .").split(), "raw": text, "imgid": place, "sentid": place * 2 + n}
            for n, text in enumerate(captions)
        ]
        images.append(
            {
                "sentids": [sentence["sentid"] for sentence in sentences],
                "imgid": place,
                "sentences": sentences,
                "split": SPLITS[name],
                "filename": f"{name}.jpg",
            }
        )
        lines += [f"{name}.jpg#{n}\t{text}\n" for n, text in enumerate(captions)]
    write_json(root / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})
    (root / "results_20130124.token").write_text("".join(lines), encoding="utf-8")
    write_pictures(root)


def write_lists(root: Path) -> None:
    """Write the same as BLIP's lists."""
    for split in ("train", "val", "test"):
        entries = [
            {"image": f"flickr30k-images/{name}.jpg", "caption": captions}
            for name, captions in CAPTIONS.items()
            if SPLITS[name] == split
        ]
        write_json(root / f"flickr30k_{split}.json", entries)
    write_pictures(root)


def write_pictures(root: Path) -> None:
    for number, name in enumerate(CAPTIONS):
        write_picture(root / "flickr30k-images" / f"{name}.jpg", number)
