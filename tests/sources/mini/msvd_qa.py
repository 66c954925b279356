"""MSVD-QA in miniature: three files of questions, the mapping, and the clips as AVI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.sources.clips import write_video
from tests.sources.mini import write_json

MAPPING = "-8aBcDeFgHi_5_15 vid1\nQq_rStUvWxY_0_9 vid2\n"
QUESTIONS: list[dict[str, Any]] = [
    {"answer": "juggle", "id": 0, "question": "what is a clown doing?", "video_id": 1},
    {"answer": "woman", "id": 1, "question": "who folds a paper bird?", "video_id": 2},
    {"answer": "three", "id": 2, "question": "how many balls does a clown throw?", "video_id": 1},
]


def write(root: Path) -> None:
    """Write the release; ids count on from split to split."""
    for place, split in enumerate(("train", "val", "test")):
        write_json(
            root / f"{split}_qa.json", [{**question, "id": question["id"] + 3 * place} for question in QUESTIONS]
        )
    (root / "youtube_mapping.txt").write_text(MAPPING, encoding="utf-8")
    write_video(root / "YouTubeClips" / "-8aBcDeFgHi_5_15.avi", 1)
    write_video(root / "YouTubeClips" / "Qq_rStUvWxY_0_9.avi", 2)
