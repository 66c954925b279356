"""VizWiz-VQA: questions that blind people asked about their own photos, ten answers each, some unanswerable."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec

from instructkit.data.examples import Example
from instructkit.data.folders import media_folder
from instructkit.data.readers import UNDECODABLE, RawRecord, Reject, json_list, require
from instructkit.sources import Reading, Source, Split
from instructkit.sources._shared.fields import PictureName, Text
from instructkit.sources._shared.vqa import Answer


class Record(msgspec.Struct):
    """One photo and its question; test has neither answers nor what is said about them."""

    image: PictureName
    question: Text
    answers: list[Answer] | None = None
    answer_type: Text | None = None
    answerable: Literal[0, 1] | None = None


SOURCE = Source(
    name="vizwiz",
    title="VizWiz",
    task="vqa",
    role="held-out",
    split="test",
    splits={
        "train": Split(("train.json",), published=20_523, note="release of 2020; that of 2018 has 20,000"),
        "val": Split(("val.json",), published=4_319, note="release of 2020; that of 2018 has 3,173"),
        "test": Split(
            ("test.json",), published=8_000, note="no answers: the paper's test-dev is scored on EvalAI", hidden=True
        ),
    },
    images="the name under `image`, in {split}/ or images/",
    tree="""\
vizwiz/
├── train.json   (files may lie in Annotations/ or annotations/)
├── val.json
├── test.json
├── train/VizWiz_train_00000000.jpg ...   (VizWiz_train_000000000000.jpg in the release of 2018)
├── val/...
└── test/...""",
    licence="CC BY 4.0",
    home="https://vizwiz.org/tasks-and-datasets/vqa",
    record=Record,
    citation="Gurari et al. 2018, arXiv:1802.08218",
)

_decode = msgspec.json.Decoder(Record).decode


def read(raw: Path, split: str) -> Reading:
    """Read `{split}.json`; the names of the photos tell the releases of 2018 and 2020 apart."""
    name = f"{split}.json"
    path = require(raw, name, f"Annotations/{name}", f"annotations/{name}")

    def convert(raw_record: RawRecord) -> list[Example]:
        record = _decode(raw_record.data)
        example = Example(
            id=f"vizwiz/{split}/{PurePosixPath(record.image).stem}",
            images=[record.image],
            question=record.question.strip(),
        )
        if split != "test":
            example.answers = [answer.answer for answer in record.answers or []]
            if not any(map(str.strip, example.answers)):
                raise Reject("no answer that is not blank")
            if record.answer_type is not None:
                example.meta["answer_type"] = record.answer_type
            if record.answerable is not None:
                example.meta["answerable"] = str(record.answerable)
        return [example]

    return Reading(_layout(path), [path], json_list(path), convert, media_folder(raw, split, "images", "Images"))


def _layout(path: Path) -> str:
    first = next(json_list(path), None)
    try:
        number = "" if first is None else PurePosixPath(_decode(first.data).image).stem.rsplit("_", 1)[-1]
    except UNDECODABLE:
        number = ""
    return {8: "release of 2020", 12: "release of 2018"}.get(len(number), "release unknown by its names")
