"""LLaVA-Instruct-150K, complex reasoning: `complex_reasoning_77k.json`."""

from __future__ import annotations

from pathlib import Path

from instructkit.sources import Reading
from instructkit.sources._shared.llava import llava_source, read_conversations

_FILE = "complex_reasoning_77k.json"

SOURCE = llava_source("llava_reasoning", "LLaVA-Instruct complex reasoning", _FILE, "77,000")


def read(raw: Path, split: str) -> Reading:
    """Read `complex_reasoning_77k.json`."""
    return read_conversations(SOURCE.name, raw, split, _FILE)
