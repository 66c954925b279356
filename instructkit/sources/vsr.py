"""Visual Spatial Reasoning: is a statement about how two things lie true or false of a COCO picture?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from instructkit.data.examples import Example
from instructkit.data.readers import RawRecord, Reject, json_lines, require
from instructkit.sources import Reading, Source, Split
from instructkit.sources._shared.fields import Text

CHOICES = ["false", "true"]
"""The label is the index."""


class Record(msgspec.Struct):
    """One line."""

    image: Annotated[str, msgspec.Meta(pattern=r"\A\d{12}\.jpg\Z")]
    image_link: Annotated[str, msgspec.Meta(pattern=r"/(?:train|val)2017/\d{12}\.jpg\Z")]
    caption: Text
    label: Annotated[int, msgspec.Meta(ge=0, le=1)]
    relation: Text


SOURCE = Source(
    name="vsr",
    title="Visual Spatial Reasoning",
    task="visual_reasoning",
    role="held-out",
    split="test",
    splits={
        "train": Split(("splits/zeroshot/train.jsonl | zeroshot/train.jsonl | train.jsonl",), published=3_489),
        "dev": Split(("splits/zeroshot/dev.jsonl | zeroshot/dev.jsonl | dev.jsonl",), published=340),
        "test": Split(
            ("splits/zeroshot/test.jsonl | zeroshot/test.jsonl | test.jsonl",),
            published=1_222,
            note="lines of the repository's zero-shot file; its README counts 616 (train 4,713, dev 231)",
        ),
        "random-train": Split(("splits/random/train.jsonl | random/train.jsonl",), published=7_680),
        "random-dev": Split(("splits/random/dev.jsonl | random/dev.jsonl",), published=1_097),
        "random-test": Split(("splits/random/test.jsonl | random/test.jsonl",), published=2_195),
    },
    images="images/{image} or trainval2017/{image}, else train2017/{image} and val2017/{image} by its link",
    tree="""\
vsr/                                  (data/ of the repository)
├── splits/zeroshot/{train,dev,test}.jsonl
├── splits/random/{train,dev,test}.jsonl
└── images/000000017697.jpg ...       (or trainval2017/; or train2017/ and val2017/ of COCO, also by --images COCO)""",
    licence="Apache-2.0",
    home="https://github.com/cambridgeltl/visual-spatial-reasoning",
    record=Record,
    citation="Liu et al. 2023, arXiv:2205.00363",
)

_decode = msgspec.json.Decoder(Record).decode


def read(raw: Path, split: str) -> Reading:
    """Read one JSON-lines file of the zero-shot or the random version."""
    lines = require(raw, *SOURCE.splits[split].files[0].split(" | "))
    flat = next((name for name in ("images", "trainval2017") if (raw / name).is_dir()), None)

    def convert(raw_record: RawRecord) -> list[Example]:
        record = _decode(raw_record.data)
        *_, folder, name = record.image_link.split("/")
        if name != record.image:
            raise Reject(f"image is {record.image}, but image_link ends with {name}")
        return [
            Example(
                id=f"vsr/{split}/{raw_record.key.removeprefix('line ')}",
                images=[record.image if flat else f"{folder}/{record.image}"],
                statement=record.caption.strip(),
                answers=[CHOICES[record.label]],
                choices=list(CHOICES),
                choice=record.label,
                meta={"relation": record.relation},
            )
        ]

    count = sum(1 for _ in json_lines(lines))
    layout = f"{_version(lines, raw)}, {count:,} lines, pictures in {flat or 'train2017 and val2017'}"
    return Reading(layout, [lines], json_lines(lines), convert, raw / flat if flat else raw)


def _version(lines: Path, raw: Path) -> str:
    """Which split it is; files that were taken out of their folder do not tell."""
    return "zeroshot or random" if lines.parent == raw else lines.parent.name
