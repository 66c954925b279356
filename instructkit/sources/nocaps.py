"""NoCaps: ten captions each of Open Images pictures, in-domain, near-domain and out-of-domain for COCO's classes."""

from __future__ import annotations

from pathlib import Path

from instructkit.data.folders import media_folder, spots
from instructkit.data.readers import RawRecord, json_member, require
from instructkit.sources import Reading, Source, Split
from instructkit.sources._shared import captions

_CAPTIONED = "nocaps_val_4500_captions.json"
_FILES = {"val": [_CAPTIONED, "nocaps_val_image_info.json"], "test": ["nocaps_test_image_info.json"]}

SOURCE = Source(
    name="nocaps",
    title="NoCaps",
    task="captioning",
    role="held-out",
    split="val",
    splits={
        # `hidden` lets the image info alone through; with the captions, an image that has none is rejected in any case.
        "val": Split(
            (" | ".join(_FILES["val"]),), published=4_500, note="the image info alone has no captions", hidden=True
        ),
        "test": Split((" | ".join(_FILES["test"]),), published=10_600, note="no captions (EvalAI)", hidden=True),
    },
    images="val/{file_name} and test/{file_name}",
    tree="""\
nocaps/
├── nocaps_val_4500_captions.json      (files may lie in annotations/)
├── nocaps_test_image_info.json
├── val/0013ea2087020901.jpg ...       (or images/val/ ...)
└── test/...""",
    licence="CC BY 2.0",
    home="https://nocaps.org",
    record=captions.CocoRecord,
    citation="Agrawal et al. 2019, arXiv:1812.08658",
)


def read(raw: Path, split: str) -> Reading:
    """Read the captions of val, or the list of images alone; `meta` has the domain where the file has it."""
    path = require(raw, *spots(*_FILES[split]))
    captioned = path.name == _CAPTIONED
    images = json_member(path, "images")
    alone = (RawRecord(file, key, b'{"image":%b}' % data) for file, key, data in images)
    return Reading(
        layout="captions" if captioned else "image info",
        files=[path],
        records=captions.coco_images(path) if captioned else alone,
        convert=captions.coco_converter(f"nocaps/{split}/", split, each=False, captioned=captioned),
        media_root=media_folder(raw, "images"),
        warnings=[f"{path.name} has no captions to score against"] if split == "val" and not captioned else [],
    )
