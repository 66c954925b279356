"""Your own data: JSON lines of picture, instruction and answer; a file is a split, named as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from instructkit.data.examples import Example
from instructkit.data.readers import RawRecord, Reject, json_lines, require
from instructkit.errors import UserError
from instructkit.sources import Reading, Source, Split
from instructkit.sources._shared.fields import Text


class Record(msgspec.Struct):
    """One line. Other keys may stand beside these; they are left alone."""

    instruction: str
    answer: str | Annotated[list[str], msgspec.Meta(min_length=1)]
    image: str | None = None
    images: list[str] = []
    id: Text | int | None = None


SOURCE = Source(
    name="jsonl",
    title="Own data",
    task="llava",
    role="extra",
    split="train",
    splits={
        "train": Split(("train.jsonl",), note="any other <name>.jsonl is the split <name>"),
        "val": Split(("val.jsonl",), note="what the benchmark jsonl asks"),
    },
    images="{image}, relative to the folder of the file",
    tree="""\
mine/                        (or --raw mine/receipts.jsonl, a file alone: the split receipts)
├── train.jsonl              {"image": "photos/1.jpg", "instruction": "What was paid?", "answer": "12.50"}
├── val.jsonl
└── photos/1.jpg ...         (or anywhere; --images names the folder that the paths start from)""",
    licence="yours",
    home="https://jsonlines.org",
    record=Record,
    citation="README, Finetune on your own data",
    own=True,
)

_decode = msgspec.json.Decoder(Record).decode


def read(raw: Path, split: str) -> Reading:
    """Read one file, `raw` itself or `<split>.jsonl` below it.

    The instruction is passed through as it is. `image` is one picture, `images` are several; `answer` is one, or a list
    of several that are as good. A line without an id is called by its number.
    """
    if not raw.exists():
        raise UserError(f"{raw}: no such file or folder")
    path = raw if raw.is_file() else require(raw, f"{split}.jsonl")
    if path.suffix != ".jsonl":
        raise UserError(f"{path}: your own data are JSON lines, in a file that ends in .jsonl")
    if path.stem != split:
        raise UserError(f"{path}: is the split {path.stem!r} by its name, not {split!r}; ask for that or rename it")

    def convert(raw_record: RawRecord) -> list[Example]:
        record = _decode(raw_record.data)
        answers = [record.answer] if isinstance(record.answer, str) else record.answer
        if not record.instruction.strip():
            raise Reject("instruction is blank")
        if not all(map(str.strip, answers)):
            raise Reject("answer is blank" if len(answers) == 1 else "one of the answers is blank")
        if (record.image is None) == (not record.images):
            raise Reject("needs either image, one picture, or images, a list")
        key = raw_record.key.removeprefix("line ") if record.id is None else record.id
        return [
            Example(
                id=f"jsonl/{split}/{key}",
                images=record.images if record.image is None else [record.image],
                question=record.instruction,
                answers=answers,
            )
        ]

    return Reading("JSON lines", [path], json_lines(path), convert, path.parent)
