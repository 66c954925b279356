"""GQA: compositional questions over scene graphs, the balanced sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from instructkit.data.examples import Example
from instructkit.data.folders import media_folder, spots
from instructkit.data.readers import RawRecord, json_object, require
from instructkit.sources import Reading, Source, Split
from instructkit.sources._shared.fields import Text


class Types(msgspec.Struct):
    """What kind of question it is."""

    structural: str
    semantic: str
    detailed: str


class Record(msgspec.Struct, rename="camel"):
    """One question, under its id; the test set has neither answer nor types."""

    question: Text
    image_id: Annotated[str, msgspec.Meta(pattern=r"\An?\d+\Z")]
    answer: Text | None = None
    full_answer: str | None = None
    types: Types | None = None


SOURCE = Source(
    name="gqa",
    title="GQA",
    task="visual_reasoning",
    role="held-out",
    split="testdev",
    splits={
        "train": Split(("train_balanced_questions.json",), published=943_000),
        "val": Split(("val_balanced_questions.json",), published=132_062),
        "testdev": Split(("testdev_balanced_questions.json",), published=12_578),
        "test": Split(("test_balanced_questions.json",), published=95_336, note="no answers", hidden=True),
    },
    images="images/{imageId}.jpg",
    tree="""\
gqa/
├── train_balanced_questions.json      (files may lie in questions1.2/ or questions/)
├── val_balanced_questions.json
├── testdev_balanced_questions.json
├── test_balanced_questions.json
└── images/n161313.jpg ...            (or --images images)""",
    licence="CC BY 4.0",
    home="https://cs.stanford.edu/people/dorarad/gqa",
    record=Record,
    citation="Hudson and Manning 2019, arXiv:1902.09506",
)

_decode = msgspec.json.Decoder(Record).decode


def read(raw: Path, split: str) -> Reading:
    """Read `{split}_balanced_questions.json`."""
    name = f"{split}_balanced_questions.json"
    questions = require(raw, *spots(name, folders=("questions1.2", "questions")))

    def convert(raw_record: RawRecord) -> list[Example]:
        record = _decode(raw_record.data)
        return [
            Example(
                id=f"gqa/{split}/{raw_record.key}",
                images=[f"{record.image_id}.jpg"],
                question=record.question.strip(),
                answers=[] if record.answer is None else [record.answer],
                meta=_meta(record),
            )
        ]

    return Reading("balanced", [questions], json_object(questions), convert, media_folder(raw, "images"))


def _meta(record: Record) -> dict[str, str]:
    meta: dict[str, str] = {}
    if record.types is not None:
        meta |= {"structural": record.types.structural, "semantic": record.types.semantic}
    if record.full_answer is not None:
        meta["full_answer"] = record.full_answer
    return meta
