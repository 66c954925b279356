"""A source for tests of the conversion: one JSON list whose records name their own ids, so that ids can repeat."""

from pathlib import Path

import msgspec

from instructkit.data.examples import Example
from instructkit.data.readers import RawRecord, Reject, json_list, require
from instructkit.sources import Reading, Source, Split


class Record(msgspec.Struct):
    """One question."""

    id: str
    image: str
    question: str
    answers: list[str]


SOURCE = Source(
    name="tiny",
    title="Tiny",
    task="vqa",
    role="extra",
    split="train",
    splits={"train": Split(("list.json",), published=3), "test": Split(("list.json",), hidden=True)},
    images="{image}",
    tree="tiny/list.json",
    licence="MIT",
    home="https://example.org",
    record=Record,
)


def read(raw: Path, split: str) -> Reading:
    """Read `list.json`."""
    path = require(raw, "list.json")

    def convert(raw_record: RawRecord) -> list[Example]:
        record = msgspec.json.decode(raw_record.data, type=Record)
        if record.question == "reject me":
            raise Reject("asked to")
        return [
            Example(
                id=f"tiny/{split}/{record.id}", images=[record.image], question=record.question, answers=record.answers
            )
        ]

    return Reading("list", [path], json_list(path), convert, raw, ["tiny is made up"])
