"""Tests of the converters; what they share."""

from __future__ import annotations

from pathlib import Path

import pytest

from instructkit import sources
from instructkit.conversion import Rejected, convert_records
from instructkit.examples import Example

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
