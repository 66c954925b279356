"""LLaVA-Instruct conversations in miniature: several turns, the image tag before or behind the first question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.sources.mini import write_json, write_picture


def conversation(image_id: int, *values: str) -> dict[str, Any]:
    """A record of the release: human and gpt in turn."""
    return {
        "id": f"{image_id:012d}",
        "image": f"{image_id:012d}.jpg",
        "conversations": [
            {"from": "gpt" if place % 2 else "human", "value": value} for place, value in enumerate(values)
        ],
    }


RECORDS = [
    conversation(
        71,
        "What is the BAKER holding?\n<image>",
        "The baker, in a White apron, holds a tray of Buns.",
        "How many?",
        "Six.\n\nTwo of them are dark.",
        "Would you eat them?",
        "As a model I cannot eat, but they look fresh.",
    ),
    conversation(72, "<image>\nWhere was this taken?", "At a harbour."),
]


def write_conversations(root: Path, file: str, records: list[dict[str, Any]]) -> None:
    """Write one of the three files and its pictures."""
    write_json(root / file, records)
    for record in records:
        write_picture(root / "train2017" / record["image"], int(record["id"]))


def write(root: Path) -> None:
    """Write the release."""
    write_conversations(root, "conversation_58k.json", RECORDS)
