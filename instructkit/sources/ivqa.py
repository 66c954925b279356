"""iVQA: questions about clips of instruction videos, five human answers each.

Written to the columns that the authors' own code reads (just-ask, `data/videoqa_loader.py`); other columns are ignored.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import msgspec

from instructkit.data.examples import Example
from instructkit.data.readers import RawRecord, Reject, csv_rows, require
from instructkit.sources import Reading, Source, Split
from instructkit.sources._shared.fields import Text
from instructkit.sources._shared.videos import find_clips


class Record(msgspec.Struct):
    """One row; `start` and `end` are seconds inside the YouTube video. An annotator's cell may be empty."""

    video_id: Annotated[str, msgspec.Meta(pattern=r"\A[\w-]{11}\Z")]
    start: float
    end: float
    question: Text
    answer1: str
    answer2: str
    answer3: str
    answer4: str
    answer5: str
    surplus: str | None = msgspec.field(name="surplus cells", default=None)


SOURCE = Source(
    name="ivqa",
    title="iVQA",
    task="video_qa",
    role="held-out",
    split="test",
    splits={
        "train": Split(("train.csv",), published=6_000),
        "val": Split(("val.csv",), published=2_000),
        "test": Split(("test.csv",), published=2_000),
    },
    images="video/{video_id}.mp4, whole, or video/{video_id}_{start}_{end}.mp4, cut",
    tree="""\
ivqa/
├── train.csv
├── val.csv
├── test.csv
└── video/abcdefghijk.mp4 ...    (or videos/; whole videos, or clips cut to abcdefghijk_10_25.mp4)""",
    licence="none stated for the questions; the videos belong to those who put them on YouTube",
    home="https://antoyang.github.io/just-ask.html",
    record=Record,
    citation="Yang et al. 2021, arXiv:2012.00451",
)

_decode = msgspec.json.Decoder(Record, strict=False).decode  # cells are strings, also the numbers


def read(raw: Path, split: str) -> Reading:
    """Read `{split}.csv`."""
    rows = require(raw, f"{split}.csv")
    clips = find_clips(raw, "video", "videos")

    def convert(raw_record: RawRecord) -> list[Example]:
        record = _decode(raw_record.data)
        if record.surplus is not None:
            raise Reject(f"more cells than columns, so cells may be shifted: {record.surplus}")
        if not (0 <= record.start < record.end < math.inf):
            raise Reject(f"start {record.start} and end {record.end} are no clip")
        cells = [record.answer1, record.answer2, record.answer3, record.answer4, record.answer5]
        answers = [cell.strip() for cell in cells if cell.strip()]
        if not answers:
            raise Reject("none of the five answers is there")
        cut = f"{record.video_id}_{record.start:g}_{record.end:g}"
        is_cut = cut in clips.names
        return [
            Example(
                id=f"ivqa/{split}/{record.video_id}/{raw_record.key.removeprefix('row ')}",
                video=clips.name(cut if is_cut else record.video_id, ".mp4"),
                start=None if is_cut else record.start,
                end=None if is_cut else record.end,
                question=record.question.strip(),
                answers=answers,
            )
        ]

    return Reading(f"{len(clips.names)} videos in {clips.folder.name}", [rows], csv_rows(rows), convert, clips.folder)
