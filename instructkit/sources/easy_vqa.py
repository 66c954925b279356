"""easy-VQA: questions about one coloured shape on a picture of 64 x 64; the PyPI package `easy-vqa` is the release."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import msgspec

from instructkit.data.examples import Example
from instructkit.data.readers import RawRecord, Reject, json_list, require
from instructkit.errors import UserError
from instructkit.sources import Reading, Source, Split


class Record(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """One question: a JSON list of three."""

    question: str
    answer: str
    image_id: int


SOURCE = Source(
    name="easy_vqa",
    title="easy-VQA",
    task="vqa",
    role="extra",
    split="train",
    splits={
        "train": Split(("train/questions.json", "answers.txt"), published=38_575),
        "train-open": Split(("train/questions.json", "answers.txt"), published=10_168, note="answers but yes and no"),
        "train-yes-no": Split(("train/questions.json", "answers.txt"), published=28_407, note="answered yes or no"),
        "test": Split(("test/questions.json", "answers.txt"), published=9_673),
    },
    images="{split}/images/{image_id}.png",
    tree="""\
easy_vqa/data/
├── answers.txt
├── train/
│   ├── questions.json
│   └── images/0.png ... 3999.png
└── test/
    ├── questions.json
    └── images/0.png ... 999.png""",
    licence="MIT",
    home="https://pypi.org/project/easy-vqa",
    record=Record,
    citation="data/README.md of the package",
)

_decode = msgspec.json.Decoder(Record).decode


def default_raw() -> Path:
    """The data folder of the installed package `easy-vqa`."""
    spec = find_spec("easy_vqa")
    if spec is None or spec.origin is None:
        raise UserError("easy-vqa is not installed; run pip install easy-vqa, or name its data folder with --raw")
    return Path(spec.origin).parent / "data"


def read(raw: Path, split: str) -> Reading:
    """Read `{folder}/questions.json`; `train-open` and `train-yes-no` are the two halves of `train`."""
    folder, _, kind = split.partition("-")
    questions = require(raw, f"{folder}/questions.json")
    vocabulary_file = require(raw, "answers.txt")
    vocabulary = set(vocabulary_file.read_text().split())

    def convert(raw_record: RawRecord) -> list[Example]:
        record = _decode(raw_record.data)
        if record.answer not in vocabulary:
            raise Reject(f"answer {record.answer!r} is not in answers.txt")
        if record.image_id < 0 or not record.question.strip():
            raise Reject("negative image id or blank question")
        if kind and (kind == "yes-no") != (record.answer in ("yes", "no")):
            return []
        return [
            Example(
                id=f"easy_vqa/{split}/{raw_record.key}",
                images=[f"{folder}/images/{record.image_id}.png"],
                question=record.question,
                answers=[record.answer],
            )
        ]

    return Reading("package", [questions, vocabulary_file], json_list(questions), convert, raw)
