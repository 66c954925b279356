"""Visual Genome's captions of regions as LAVIS lists them for BLIP and BLIP-2: one short text a record."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import msgspec

from instructkit.data.examples import Example
from instructkit.data.folders import spots
from instructkit.data.readers import RawRecord, Reject, json_list, require
from instructkit.sources import Reading, Source, Split
from instructkit.sources._shared import visual_genome
from instructkit.sources._shared.fields import Text

_FILE = "vg_caption.json"


class Record(msgspec.Struct, gc=False):
    """One caption; of the path under `image`, which is that on its makers' disk, the last folder and the name count."""

    image: Text
    caption: Text


SOURCE = Source(
    name="vg_caption",
    title="Visual Genome captions",
    task="captioning",
    role="extra",
    split="train",
    splits={"train": Split((_FILE,), note="some 769,000 texts in the tables of ALBEF and BLIP")},
    images=visual_genome.IMAGES,
    tree="""\
vg_caption/
├── vg_caption.json                    (LAVIS's list; may lie in annotations/)
├── image_data.json                    (says which folder a picture is in; without it both are looked into)
├── VG_100K/2407890.jpg ...            (or images/VG_100K/ ...)
└── VG_100K_2/1592325.jpg ...""",
    licence="CC BY 4.0",
    home="https://homes.cs.washington.edu/~ranjay/visualgenome/",
    record=Record,
    citation="Krishna et al. 2017, arXiv:1602.07332; list: Li et al. 2021, arXiv:2107.07651",
)

_decode = msgspec.json.Decoder(Record).decode


def read(raw: Path, split: str) -> Reading:
    """Read LAVIS's list, an example a caption."""
    path = require(raw, *spots(_FILE))
    root, picture, facts = visual_genome.pictures(raw)

    def convert(raw_record: RawRecord) -> list[Example]:
        record = _decode(raw_record.data)
        image = PurePosixPath(record.image)
        number = re.fullmatch(r"(\d+)\.jpg", image.name)
        if number is None:
            raise Reject(f"{record.image!r} is not the path of an image of Visual Genome")
        told = image.parent.name in visual_genome.FOLDERS
        place = f"{image.parent.name}/{image.name}" if told else picture(int(number[1]))
        key = f"vg_caption/train/{raw_record.key}"
        return [Example(id=key, images=[place], references=[record.caption.strip()])]

    return Reading("list of captions", [path, *facts], json_list(path), convert, root)
