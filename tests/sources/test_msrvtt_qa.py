from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from instructkit import sources
from instructkit.data.examples import Example
from tests.sources import converted, sample, write_json
from tests.sources.clips import write_video

# MSRVTT-QA in miniature: three files of questions and the clips.
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


POTATO = Example(id="msrvtt_qa/test/920", video="video7.mp4", question="what does a cook peel?", answers=["potato"])
GIRLS = Example(id="msrvtt_qa/test/921", video="video8.mp4", question="what are two girls doing?", answers=["sing"])


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


def test_the_number_tells_the_video(raw: Path) -> None:
    assert converted("msrvtt_qa", raw, "test") == ([POTATO, GIRLS], [])


@pytest.mark.parametrize(("split", "folder"), [("train", "TrainValVideo"), ("test", "TestVideo")])
def test_folders_of_the_release_are_found(raw: Path, split: str, folder: str) -> None:
    (raw / "videos").rename(raw / folder)
    reading = sources.module("msrvtt_qa").read(raw, split)
    assert (reading.media_root, reading.layout) == (raw / folder, f"2 clips in {folder}")


def test_clips_in_another_container_are_found_under_their_suffix(raw: Path) -> None:
    (raw / "videos" / "video8.mp4").rename(raw / "videos" / "video8.webm")
    assert [example.video for example in converted("msrvtt_qa", raw, "test")[0]] == ["video7.mp4", "video8.webm"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"video_id": 10_000}, "video_id 10000 is no video of the release"),
        ({"video_id": -1}, "Expected `int` >= 0 - at `$.video_id`"),
        ({"video_id": "video7"}, "Expected `int`, got `str` - at `$.video_id`"),
        ({"answer": None}, "Expected `str`, got `null` - at `$.answer`"),
        ({"question": " "}, "at `$.question`"),
    ],
)
def test_broken_records_are_rejected_with_the_reason(raw: Path, change: dict[str, Any], reason: str) -> None:
    (raw / "test_qa.json").write_text(json.dumps([{**QUESTIONS[0], **change}, {**QUESTIONS[1], "id": 921}]))
    examples, rejected = converted("msrvtt_qa", raw, "test")
    assert examples == [GIRLS]
    assert rejected[0].reason.endswith(reason)


def test_authentic_excerpts_convert_whole_and_find_their_clips() -> None:
    raw = sample("msrvtt_qa")
    assert [len(part) for part in converted("msrvtt_qa", raw, "val")] == [50, 0]
    examples, rejected = converted("msrvtt_qa", raw, "test")
    assert (len(examples), rejected) == (38, [])
    assert examples[0] == Example(
        id="msrvtt_qa/test/170871",
        video="video7010.mp4",
        question="who writes instructions on his computer?",
        answers=["guy"],
    )
    root = sources.module("msrvtt_qa").read(raw, "test").media_root
    assert all((root / str(example.video)).is_file() for example in examples)
