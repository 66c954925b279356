"""LLaVA-Instruct-150K, detailed description: `detail_23k.json`."""

from __future__ import annotations

from pathlib import Path

from instructkit.sources import Reading
from instructkit.sources._shared.llava import llava_source, read_conversations

_FILE = "detail_23k.json"

SOURCE = llava_source("llava_detail", "LLaVA-Instruct detailed description", _FILE, "23,000")


def read(raw: Path, split: str) -> Reading:
    """Read `detail_23k.json`."""
    return read_conversations(SOURCE.name, raw, split, _FILE)
