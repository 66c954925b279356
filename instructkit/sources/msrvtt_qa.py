"""MSRVTT-QA: questions made from the captions of 10,000 web clips."""

from __future__ import annotations

from pathlib import Path

import msgspec

from instructkit.data.readers import json_list, require
from instructkit.sources import Reading, Source, Split
from instructkit.sources._shared.videos import Question, converter, find_clips

VIDEOS = 10_000


class Record(Question):
    """One entry of `{split}_qa.json`; `video_id` n is `video{n}.mp4`."""


SOURCE = Source(
    name="msrvtt_qa",
    title="MSRVTT-QA",
    task="video_qa",
    role="held-out",
    split="test",
    splits={
        "train": Split(("train_qa.json",), published=158_581),
        "val": Split(("val_qa.json",), published=12_278),
        "test": Split(("test_qa.json",), published=72_821),
    },
    images="videos/video{video_id}.mp4",
    tree="""\
msrvtt_qa/
├── train_qa.json
├── val_qa.json
├── test_qa.json
└── videos/video7010.mp4 ...    (or TrainValVideo/ and TestVideo/ as MSR-VTT packs them)""",
    licence="none stated; MSR-VTT is for research only",
    home="https://github.com/xudejing/video-question-answering",
    record=Record,
    citation="Xu et al. 2017, doi:10.1145/3123266.3123427",
)

_decode = msgspec.json.Decoder(Record).decode


def read(raw: Path, split: str) -> Reading:
    """Read `{split}_qa.json`."""
    questions = require(raw, f"{split}_qa.json")
    clips = find_clips(raw, "videos", "video", "TestVideo" if split == "test" else "TrainValVideo")

    def name(video_id: int) -> str | None:
        return clips.name(f"video{video_id}", ".mp4") if video_id < VIDEOS else None

    layout = f"{len(clips.names)} clips in {clips.folder.name}"
    convert = converter(SOURCE.name, split, _decode, name)
    return Reading(layout, [questions], json_list(questions), convert, clips.folder)
