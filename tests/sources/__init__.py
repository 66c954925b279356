"""Tests of the converters; what they share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from instructkit import sources
from instructkit.conversion.convert import Rejected, convert_records
from instructkit.data.examples import Example

SAMPLES = Path(__file__).resolve().parents[2].parent / "shared" / "samples"
"""Authentic excerpts of the releases, beside the checkout where they could be had."""


def sample(name: str) -> Path:
    """A folder or file of the authentic excerpts; the test is skipped where it is absent."""
    path = SAMPLES / name
    if not path.exists():
        pytest.skip(f"no authentic excerpt at {path}")
    return path


def converted(name: str, raw: Path, split: str) -> tuple[list[Example], list[Rejected]]:
    """All examples and rejects of one split of a raw folder, in order."""
    reading = sources.module(name).read(raw, split)
    return convert_records(reading, list(reading.records))


def write_json(path: Path, value: Any) -> None:
    """Write one JSON file and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """Write a JSON-lines file and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_picture(path: Path, number: int = 0) -> None:
    """Write a picture of 12 x 8 whose colour follows from the number; the suffix decides the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 8), (number * 53 % 256, number * 97 % 256, 120)).save(path)
