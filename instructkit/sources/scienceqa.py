"""ScienceQA: multiple-choice questions of school science, those that come with a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from instructkit.data.examples import Example
from instructkit.data.folders import media_folder
from instructkit.data.readers import RawRecord, Reject, require
from instructkit.sources import Reading, Source, Split
from instructkit.sources._shared.fields import Natural, PictureName, Text
from instructkit.sources._shared.problems import problem_bytes, problems


class Record(msgspec.Struct):
    """One problem; `image` is null for about half of them."""

    question: Text
    choices: Annotated[list[str], msgspec.Meta(min_length=2)]
    answer: Natural
    hint: str
    image: PictureName | None
    grade: str
    subject: str
    topic: str
    category: str
    skill: str
    lecture: str
    solution: str
    split: str


_NOTE = "questions with a picture, of {} in all; the others are read and left out, as no example goes without a picture"
_FILES = ("problems.json", "pid_splits.json")

SOURCE = Source(
    name="scienceqa",
    title="ScienceQA (image)",
    task="knowledge_vqa",
    role="held-out",
    split="test",
    splits={
        "train": Split(_FILES, published=6_218, note=_NOTE.format("12,726")),
        "val": Split(_FILES, published=2_097, note=_NOTE.format("4,241")),
        "test": Split(_FILES, published=2_017, note=_NOTE.format("4,241")),
    },
    images="images/{split}/{pid}/image.png",
    tree="""\
scienceqa/                        (data/scienceqa/ of the repository)
├── problems.json
├── pid_splits.json
└── images/{train,val,test}/{pid}/image.png        (or --images images)""",
    licence="CC BY-NC-SA 4.0",
    home="https://scienceqa.github.io",
    record=Record,
    citation="Lu et al. 2022, arXiv:2209.09513",
)

_decode = msgspec.json.Decoder(Record).decode


def read(raw: Path, split: str) -> Reading:
    """Read the problems that `pid_splits.json` lists for the split."""
    problems_file, splits_file = (require(raw, name) for name in _FILES)

    def convert(raw_record: RawRecord) -> list[Example]:
        record = _decode(problem_bytes(raw_record))
        if record.split != split:
            raise Reject(f"pid_splits.json lists it for {split}, problems.json for {record.split}")
        if record.answer >= len(record.choices):
            raise Reject(f"answer {record.answer} is no index into {len(record.choices)} choices")
        if record.image is None:
            return []
        return [
            Example(
                id=f"scienceqa/{split}/{raw_record.key}",
                images=[f"{split}/{raw_record.key}/{record.image}"],
                question=record.question.strip(),
                answers=[record.choices[record.answer]],
                choices=record.choices,
                choice=record.answer,
                context=record.hint.strip() or None,
                lecture=record.lecture.strip() or None,
                rationales=[record.solution] if record.solution.strip() else [],
                meta={name: getattr(record, name) for name in ("subject", "topic", "category", "skill", "grade")},
            )
        ]

    return Reading(
        layout="problems.json",
        files=[problems_file, splits_file],
        records=problems(problems_file, splits_file, split),
        convert=convert,
        media_root=media_folder(raw, "images"),
    )
