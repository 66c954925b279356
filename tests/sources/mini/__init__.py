"""Miniature releases, one module a source: `write(root)` lays a release out as documented, in our own texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image


def write_json(path: Path, value: Any) -> None:
    """Write one JSON file and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def write_picture(path: Path, number: int = 0) -> None:
    """Write a picture of 12 x 8 whose colour follows from the number; the suffix decides the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 8), (number * 53 % 256, number * 97 % 256, 120)).save(path)
