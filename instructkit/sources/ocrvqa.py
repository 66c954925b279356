"""OCR-VQA: questions about book covers, answered from the books' records; the release has no OCR tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from instructkit.data.examples import Example
from instructkit.data.folders import media_folder, spots
from instructkit.data.readers import UNDECODABLE, RawRecord, Reject, json_object, require
from instructkit.sources import Reading, Source, Split
from instructkit.sources._shared.fields import Text


class Record(msgspec.Struct):
    """One book, under its ASIN; title, authorName and genre, which it has too, are what the questions ask for."""

    imageURL: str
    questions: list[Text]
    answers: list[Text]
    split: Literal[1, 2, 3]


class _Split(msgspec.Struct):
    split: Literal[1, 2, 3]


_NUMBERS = {"train": 1, "val": 2, "test": 3}

SOURCE = Source(
    name="ocrvqa",
    title="OCR-VQA",
    task="reading_vqa",
    role="held-in",
    split="train",
    splits={
        "train": Split(("dataset.json",), note="about 800,000 of 1,002,146 questions in all three splits"),
        "val": Split(("dataset.json",)),
        "test": Split(("dataset.json",)),
    },
    images="{ASIN}{suffix of imageURL}",
    tree="""\
ocrvqa/
├── dataset.json              (may lie in annotations/)
└── images/761183272.jpg ...  (as the authors' loadDataset.py saves them)""",
    licence="not stated by the authors",
    home="https://ocr-vqa.github.io",
    record=Record,
    citation="Mishra et al. 2019, ICDAR",
)

_decode = msgspec.json.Decoder(Record).decode
_decode_split = msgspec.json.Decoder(_Split).decode
_ASIN = re.compile(r"\w+")
_SUFFIX = re.compile(r"\.(?:jpg|jpeg|png|gif)\Z", re.IGNORECASE)


def read(raw: Path, split: str) -> Reading:
    """Read the books of one split out of `dataset.json`; one example a question."""
    path = require(raw, *spots("dataset.json"))

    def convert(raw_record: RawRecord) -> list[Example]:
        record = _decode(raw_record.data)
        suffix = _SUFFIX.search(record.imageURL)
        if suffix is None or not _ASIN.fullmatch(raw_record.key):
            raise Reject(f"no picture can be named after ASIN {raw_record.key!r} and imageURL {record.imageURL!r}")
        if len(record.questions) != len(record.answers) or not record.questions:
            raise Reject(f"{len(record.questions)} questions and {len(record.answers)} answers")
        return [
            Example(
                id=f"ocrvqa/{split}/{raw_record.key}/{number}",
                images=[f"{raw_record.key}{suffix[0]}"],
                question=question.strip(),
                answers=[answer],
            )
            for number, (question, answer) in enumerate(zip(record.questions, record.answers, strict=True))
        ]

    return Reading("dataset.json", [path], _books(path, _NUMBERS[split]), convert, media_folder(raw, "images"))


def _books(path: Path, number: int) -> Iterator[RawRecord]:
    """The books of a split, and those whose split cannot be told."""
    for record in json_object(path):
        try:
            if _decode_split(record.data).split != number:
                continue
        except UNDECODABLE:
            pass  # decoding it in full will say what is wrong with it
        yield record
