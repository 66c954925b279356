"""LLaVA-Instruct-150K, conversation: `conversation_58k.json`."""

from __future__ import annotations

from pathlib import Path

from instructkit.sources import Reading
from instructkit.sources._shared.llava import llava_source, read_conversations

_FILE = "conversation_58k.json"

SOURCE = llava_source("llava_conversation", "LLaVA-Instruct conversation", _FILE, "58,000")


def read(raw: Path, split: str) -> Reading:
    """Read `conversation_58k.json`."""
    return read_conversations(SOURCE.name, raw, split, _FILE)
