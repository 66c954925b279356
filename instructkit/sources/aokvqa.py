"""A-OKVQA: questions about COCO 2017 images with four options, ten direct answers and three rationales each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from instructkit.data.examples import Example
from instructkit.data.folders import media_folder, spots
from instructkit.data.readers import RawRecord, Reject, json_list, require
from instructkit.sources import Reading, Source, Split
from instructkit.sources._shared.fields import Key, Natural, Text


class Record(msgspec.Struct):
    """One question; test has neither answers nor rationales. A few have an option that is blank."""

    split: str
    image_id: Natural
    question_id: Key
    question: Text
    choices: Annotated[list[str], msgspec.Meta(min_length=2)]
    correct_choice_idx: Natural | None = None
    direct_answers: list[str] | None = None
    difficult_direct_answer: bool | None = None
    rationales: list[str] = []


SOURCE = Source(
    name="aokvqa",
    title="A-OKVQA",
    task="knowledge_vqa",
    role="held-in",
    split="train",
    splits={
        "train": Split(("aokvqa_v1p0_train.json",), published=17_056),
        "val": Split(("aokvqa_v1p0_val.json",), published=1_145),
        "test": Split(("aokvqa_v1p0_test.json",), published=6_702, note="no answers", hidden=True),
    },
    images="train2017/{image_id:012d}.jpg, likewise val2017/ and test2017/",
    tree="""\
aokvqa/
├── aokvqa_v1p0_train.json             (files may lie in annotations/)
├── aokvqa_v1p0_val.json
├── aokvqa_v1p0_test.json
└── train2017/000000299207.jpg ...     (or images/train2017/ ..., or --images COCO)""",
    licence="Apache-2.0",
    home="https://github.com/allenai/aokvqa",
    record=Record,
    citation="Schwenk et al. 2022, arXiv:2206.01718",
)

_decode = msgspec.json.Decoder(Record).decode


def read(raw: Path, split: str) -> Reading:
    """Read `aokvqa_v1p0_{split}.json`."""
    path = require(raw, *spots(f"aokvqa_v1p0_{split}.json"))

    def convert(raw_record: RawRecord) -> list[Example]:
        record = _decode(raw_record.data)
        if record.split != split:
            raise Reject(f"is of the split {record.split!r}")
        example = Example(
            id=f"aokvqa/{split}/{record.question_id}",
            images=[f"{split}2017/{record.image_id:012}.jpg"],
            question=record.question.strip(),
            choices=record.choices,
        )
        if split != "test":
            _answer(example, record)
        return [example]

    return Reading("v1.0", [path], json_list(path), convert, media_folder(raw, "images"))


def _answer(example: Example, record: Record) -> None:
    """Fill in the right choice, the direct answers and what else test lacks."""
    if record.correct_choice_idx is None or record.correct_choice_idx >= len(record.choices):
        raise Reject(f"correct_choice_idx {record.correct_choice_idx} points to none of {len(record.choices)} choices")
    if not any(answer.strip() for answer in record.direct_answers or []):
        raise Reject("no direct answer that is not blank")
    example.choice = record.correct_choice_idx
    example.answers = record.direct_answers or []
    example.rationales = [rationale.strip() for rationale in record.rationales if rationale.strip()]
    if record.difficult_direct_answer is not None:
        example.meta = {"difficult_direct_answer": str(record.difficult_direct_answer).lower()}
