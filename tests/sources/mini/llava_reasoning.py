"""LLaVA-Instruct complex reasoning in miniature: one turn each."""

from __future__ import annotations

from pathlib import Path

from tests.sources.mini.llava_conversation import conversation, write_conversations

RECORDS = [
    conversation(91, "Why might the road be closed?\n<image>", "A tree lies across it, so cars cannot pass."),
    conversation(92, "<image>\nWhat should the sailor do next?", "He should reef the sail, since the wind is rising."),
]


def write(root: Path) -> None:
    """Write the release."""
    write_conversations(root, "complex_reasoning_77k.json", RECORDS)
