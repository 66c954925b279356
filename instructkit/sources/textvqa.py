"""TextVQA: questions that need the text in the picture, ten answers each, Rosetta's OCR tokens beside them."""

from __future__ import annotations

from pathlib import Path

import msgspec

from instructkit.data import ocr
from instructkit.data.examples import Example
from instructkit.data.folders import spots
from instructkit.data.readers import RawRecord, Reject, json_member, require
from instructkit.sources import Reading, Source, Split
from instructkit.sources._shared.fields import Key, Natural, Text


class Record(msgspec.Struct):
    """One entry of `data`; test has no answers."""

    question_id: Natural
    question: Text
    image_id: Key
    set_name: str
    answers: list[str] | None = None


class _Joined(msgspec.Struct):
    record: Record
    ocr_tokens: list[str] | None


_QUESTIONS = "TextVQA_0.5.1_{}.json"
_FOLDERS = {"train": "train_images", "val": "train_images", "test": "test_images"}

SOURCE = Source(
    name="textvqa",
    title="TextVQA",
    task="reading_vqa",
    role="held-out",
    split="val",
    splits={
        "train": Split((_QUESTIONS.format("train"),), published=34_602),
        "val": Split((_QUESTIONS.format("val"),), published=5_000),
        "test": Split((_QUESTIONS.format("test"),), published=5_734, note="no answers", hidden=True),
    },
    images="train_images/{image_id}.jpg for train and val, test_images/{image_id}.jpg for test",
    tree="""\
textvqa/
├── TextVQA_0.5.1_val.json                 (files may lie in annotations/)
├── TextVQA_Rosetta_OCR_v0.2_val.json      (for OCR tokens; without it examples have none)
├── train_images/003a8ae2ef43b901.jpg ...  (train and val)
└── test_images/...""",
    licence="CC BY 4.0",
    home="https://textvqa.org",
    record=Record,
    citation="Singh et al. 2019, arXiv:1904.08920",
)

_decode = msgspec.json.Decoder(_Joined).decode


def read(raw: Path, split: str) -> Reading:
    """Read `TextVQA_0.5.1_{split}.json`, and Rosetta's tokens if they are there (the layout says so)."""
    path = require(raw, *spots(_QUESTIONS.format(split)))
    rosetta = ocr.rosetta_file(raw, split)

    def convert(raw_record: RawRecord) -> list[Example]:
        joined = _decode(raw_record.data)
        record = joined.record
        if record.set_name != split:
            raise Reject(f"is of the set {record.set_name!r}")
        example = Example(
            id=f"textvqa/{split}/{record.question_id}",
            images=[f"{_FOLDERS[split]}/{record.image_id}.jpg"],
            question=record.question.strip(),
            ocr_tokens=ocr.required_tokens(joined.ocr_tokens, rosetta),
        )
        if split != "test":
            example.answers = record.answers or []
            if not any(map(str.strip, example.answers)):
                raise Reject("no answer that is not blank")
        return [example]

    return Reading(
        layout="0.5.1, Rosetta's OCR tokens" if rosetta else "0.5.1, no OCR tokens",
        files=[path, rosetta] if rosetta else [path],
        records=ocr.lay_beside(json_member(path, "data"), rosetta),
        convert=convert,
        media_root=raw,
        warnings=[] if rosetta else [ocr.missing_note(raw, split)],
    )
