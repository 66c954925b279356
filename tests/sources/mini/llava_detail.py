"""LLaVA-Instruct detailed descriptions in miniature: one turn each."""

from __future__ import annotations

from pathlib import Path

from tests.sources.mini.llava_conversation import conversation, write_conversations

LONG = " ".join(f"There is a lantern numbered {number}." for number in range(1, 31))
RECORDS = [
    conversation(81, "<image>\nDescribe the scene in full.", LONG),
    conversation(82, "Tell me all that you see.\n<image>", "A narrow lane.\n\nBicycles lean against a wall."),
]


def write(root: Path) -> None:
    """Write the release."""
    write_conversations(root, "detail_23k.json", RECORDS)
