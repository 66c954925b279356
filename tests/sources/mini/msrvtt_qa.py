"""MSRVTT-QA in miniature: three files of questions and the clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.sources.clips import write_video
from tests.sources.mini import write_json

QUESTIONS: list[dict[str, Any]] = [
    {"answer": "potato", "category_id": 3, "id": 900, "question": "what does a cook peel?", "video_id": 7},
    {"answer": "sing", "category_id": 0, "id": 901, "question": "what are two girls doing?", "video_id": 8},
]


def write(root: Path) -> None:
    """Write the release; each split has its own ids."""
    for place, split in enumerate(("train", "val", "test")):
        write_json(
            root / f"{split}_qa.json", [{**question, "id": question["id"] + 10 * place} for question in QUESTIONS]
        )
    write_video(root / "videos" / "video7.mp4", 7)
    write_video(root / "videos" / "video8.mp4", 8)
