"""TextCaps: captions that mention the text in the picture, on TextVQA's pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from instructkit.data import ocr
from instructkit.data.examples import Example
from instructkit.data.folders import spots
from instructkit.data.readers import UNDECODABLE, RawRecord, Reject, json_member, require
from instructkit.sources import Reading, Source, Split
from instructkit.sources._shared.fields import Key, Natural, Text


class Record(msgspec.Struct):
    """One entry of `data`: one caption, with all captions of its image beside it; test has none."""

    image_id: Key
    set_name: str
    caption_id: Natural | None = None
    caption_str: Text | None = None
    reference_strs: list[Text] = []


class _Joined(msgspec.Struct):
    record: Record
    ocr_tokens: list[str] | None


class _Picture(msgspec.Struct):
    image_id: str


_CAPTIONS = "TextCaps_0.1_{}.json"
_FOLDERS = {"train": "train_images", "val": "train_images", "test": "test_images"}

SOURCE = Source(
    name="textcaps",
    title="TextCaps",
    task="reading_captioning",
    role="held-in",
    split="train",
    splits={
        "train": Split((_CAPTIONS.format("train"),), published=109_765, note="captions of 21,953 images"),
        "val": Split((_CAPTIONS.format("val"),), published=3_166, note="images with five captions each"),
        "test": Split((_CAPTIONS.format("test"),), published=3_289, note="images, no captions", hidden=True),
    },
    images="TextVQA's: train_images/{image_id}.jpg for train and val, test_images/{image_id}.jpg for test",
    tree="""\
textcaps/
├── TextCaps_0.1_train.json                (files may lie in annotations/)
├── TextVQA_Rosetta_OCR_v0.2_train.json    (TextVQA's, for OCR tokens; without it examples have none)
├── train_images/011e7e629fb9ae7b.jpg ...  (TextVQA's; train and val)
└── test_images/...""",
    licence="CC BY 4.0",
    home="https://textvqa.org/textcaps",
    record=Record,
    citation="Sidorov et al. 2020, arXiv:2003.12462",
)

_decode = msgspec.json.Decoder(_Joined).decode
_decode_picture = msgspec.json.Decoder(_Picture).decode


def read(raw: Path, split: str) -> Reading:
    """Read `TextCaps_0.1_{split}.json`, and Rosetta's tokens if they are there (the layout says so).

    Train gives one example a caption, the others one an image, from the first entry of the image.
    """
    path = require(raw, *spots(_CAPTIONS.format(split)))
    rosetta = ocr.rosetta_file(raw, split)

    def convert(raw_record: RawRecord) -> list[Example]:
        joined = _decode(raw_record.data)
        record = joined.record
        if record.set_name != split:
            raise Reject(f"is of the set {record.set_name!r}")
        key, references = _caption(record, split)
        return [
            Example(
                id=f"textcaps/{split}/{key}",
                images=[f"{_FOLDERS[split]}/{record.image_id}.jpg"],
                references=[reference.strip() for reference in references],
                ocr_tokens=ocr.required_tokens(joined.ocr_tokens, rosetta),
            )
        ]

    records = json_member(path, "data")
    return Reading(
        layout="0.1, Rosetta's OCR tokens" if rosetta else "0.1, no OCR tokens",
        files=[path, rosetta] if rosetta else [path],
        records=ocr.lay_beside(records if split == "train" else _first_of_each_image(records), rosetta),
        convert=convert,
        media_root=raw,
        warnings=[] if rosetta else [ocr.missing_note(raw, split)],
    )


def _caption(record: Record, split: str) -> tuple[str, list[str]]:
    """Key and captions of the example."""
    if split == "test":
        return record.image_id, []
    if record.caption_id is None or record.caption_str is None:
        raise Reject("no caption_id or no caption_str")
    if split == "train":
        return str(record.caption_id), [record.caption_str]
    if record.caption_str not in record.reference_strs:
        raise Reject("caption_str is not among the reference_strs of its image")
    return record.image_id, record.reference_strs


def _first_of_each_image(records: Iterator[RawRecord]) -> Iterator[RawRecord]:
    seen = set()
    for record in records:
        try:
            image = _decode_picture(record.data).image_id
        except UNDECODABLE:
            yield record  # decoding it in full will say what is wrong with it
            continue
        if image not in seen:
            seen.add(image)
            yield record
