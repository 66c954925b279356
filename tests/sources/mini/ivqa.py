"""iVQA in miniature: three files of questions and two whole videos."""

from __future__ import annotations

import csv
from pathlib import Path

from tests.sources.clips import write_video

COLUMNS = ["video_id", "start", "end", "question", "answer1", "answer2", "answer3", "answer4", "answer5", "type"]
ROWS = [
    ["aB-dE_gHiJ0", "0", "1", "What is poured into the bowl?", "milk", "milk", "cream", "milk", "white liquid", "2"],
    ["zZ9yY8xX7wW", "0.5", "2", "Which tool, if any, is used?", "whisk", "", "a whisk", "whisk", "", "1"],
]


def write_rows(path: Path, rows: list[list[str]], columns: list[str] = COLUMNS) -> None:
    """Write a CSV file with a header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


def write(root: Path) -> None:
    """Write the release; videos are longer than the clips in question."""
    for split in ("train", "val", "test"):
        write_rows(root / f"{split}.csv", ROWS)
    for number, row in enumerate(ROWS):
        write_video(root / "video" / f"{row[0]}.mp4", number, seconds=3)
