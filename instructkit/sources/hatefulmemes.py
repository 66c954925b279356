"""Hateful Memes: is a meme, a picture with a text on it, hateful?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from instructkit.data.examples import Example
from instructkit.data.readers import RawRecord, json_lines, require
from instructkit.sources import Reading, Source, Split
from instructkit.sources._shared.fields import Natural, Text

CHOICES = ["no", "yes"]
"""The label is the index: 1 is hateful."""


class Record(msgspec.Struct):
    """One line; test files came without labels at first. Some copies have the id as a text, with zeros in front."""

    id: Natural | Annotated[str, msgspec.Meta(pattern=r"\A[0-9]{1,18}\Z")]
    img: Annotated[str, msgspec.Meta(pattern=r"\Aimg/\w+\.png\Z")]
    text: Text
    label: Annotated[int, msgspec.Meta(ge=0, le=1)] | None = None


_PHASE_1 = "phase 1 of the challenge calls it {}.jsonl"

SOURCE = Source(
    name="hatefulmemes",
    title="Hateful Memes",
    task="classification",
    role="held-out",
    split="dev_seen",
    splits={
        "train": Split(("train.jsonl",), published=8_500),
        "dev_seen": Split(
            ("dev_seen.jsonl | dev.jsonl",),
            published=500,
            note=f"{_PHASE_1.format('dev')}; the paper says validation set, not which of the two",
        ),
        "dev_unseen": Split(("dev_unseen.jsonl",), published=540, note="phase 2 only"),
        "test_seen": Split(
            ("test_seen.jsonl | test.jsonl",), published=1_000, note=_PHASE_1.format("test"), hidden=True
        ),
        "test_unseen": Split(("test_unseen.jsonl",), published=2_000, note="phase 2 only", hidden=True),
    },
    images="{img}, which begins with img/",
    tree="""\
hatefulmemes/
├── train.jsonl
├── dev_seen.jsonl                (phase 1: dev.jsonl)
├── dev_unseen.jsonl
├── test_seen.jsonl               (phase 1: test.jsonl)
├── test_unseen.jsonl
└── img/01235.png ...""",
    licence="Meta's own; for research, not to be passed on",
    home="https://ai.meta.com/tools/hatefulmemes",
    record=Record,
    citation="Kiela et al. 2020, arXiv:2005.04790",
)

_decode = msgspec.json.Decoder(Record).decode


def read(raw: Path, split: str) -> Reading:
    """Read one JSON-lines file of either phase."""
    lines = require(raw, *SOURCE.splits[split].files[0].split(" | "))
    phase = "phase 1" if lines.stem in ("dev", "test") else "phase 2"

    def convert(raw_record: RawRecord) -> list[Example]:
        record = _decode(raw_record.data)
        return [
            Example(
                id=f"hatefulmemes/{split}/{int(record.id)}",
                images=[record.img],
                context=record.text.strip(),
                answers=[] if record.label is None else [CHOICES[record.label]],
                choices=list(CHOICES),
                choice=record.label,
            )
        ]

    return Reading("both phases" if split == "train" else phase, [lines], json_lines(lines), convert, raw)
