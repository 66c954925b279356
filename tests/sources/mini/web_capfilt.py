"""Web CapFilt in miniature: the list of URLs with pictures as img2dataset leaves them (`write`), or of image paths."""

from __future__ import annotations

from pathlib import Path

from tests.sources.mini import write_json, write_picture

CAPTIONS = ["a red kite above the sea ", "two mugs on a wooden table", "mountains behind a lake", "an old steam train"]


def write(root: Path) -> None:
    """Write the release as BLIP ships it, and the pictures downloaded."""
    pairs = [{"url": f"http://pictures.example/{n}.jpg", "caption": text} for n, text in enumerate(CAPTIONS)]
    write_json(root / "ccs_synthetic_filtered_large.json", pairs)
    for number in range(len(CAPTIONS)):
        write_picture(root / "images" / "00000" / f"{number:09}.jpg", number)


def write_paths(root: Path, name: str = "ccs_filtered.json") -> None:
    """Write the list that BLIP's training code reads."""
    pairs = [{"image": f"cc3m/{n}.jpg", "caption": text} for n, text in enumerate(CAPTIONS)]
    write_json(root / name, pairs)
    for number in range(len(CAPTIONS)):
        write_picture(root / "cc3m" / f"{number}.jpg", number)
