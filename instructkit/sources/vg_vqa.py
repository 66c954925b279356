"""Visual Genome's questions: 17 an image on average, one answer each, about the whole picture and about regions."""

from __future__ import annotations

from pathlib import Path

import msgspec

from instructkit.data.examples import Example
from instructkit.data.folders import spots
from instructkit.data.readers import RawRecord, Reject, json_list, require
from instructkit.sources import Reading, Source, Split
from instructkit.sources._shared import visual_genome
from instructkit.sources._shared.fields import Natural, Text

_FILE = "question_answers.json"


class Pair(msgspec.Struct, gc=False):
    """One entry of `qas`."""

    qa_id: Natural
    image_id: Natural
    question: Text
    answer: Text


class Record(msgspec.Struct, gc=False):
    """One image with its questions."""

    id: Natural
    qas: list[Pair]


SOURCE = Source(
    name="vg_vqa",
    title="Visual Genome QA",
    task="vqa",
    role="extra",
    split="train",
    splits={"train": Split((_FILE,), note="BLIP-2 finetunes on them beside VQAv2")},
    images=visual_genome.IMAGES,
    tree="""\
vg_vqa/
├── question_answers.json              (may lie in annotations/)
├── image_data.json                    (says which folder a picture is in; without it both are looked into)
├── VG_100K/2407890.jpg ...            (or images/VG_100K/ ...)
└── VG_100K_2/1592325.jpg ...""",
    licence="CC BY 4.0",
    home="https://homes.cs.washington.edu/~ranjay/visualgenome/",
    record=Record,
    citation="Krishna et al. 2017, arXiv:1602.07332",
)

_decode = msgspec.json.Decoder(Record).decode


def read(raw: Path, split: str) -> Reading:
    """Read the questions, an example each.

    Answers are written as sentences ("Blue."): the full stop is taken off, as VQAv2's answers have none.
    """
    path = require(raw, *spots(_FILE))
    root, picture, facts = visual_genome.pictures(raw)

    def convert(raw_record: RawRecord) -> list[Example]:
        record = _decode(raw_record.data)
        image = picture(record.id)
        examples = []
        for pair in record.qas:
            if pair.image_id != record.id:
                raise Reject(f"question {pair.qa_id} is of image {pair.image_id}, among those of image {record.id}")
            answer = pair.answer.strip().removesuffix(".").strip()
            if not answer:
                raise Reject(f"question {pair.qa_id} has no answer but a full stop")
            example = Example(id=f"vg_vqa/train/{pair.qa_id}", images=[image], question=pair.question.strip())
            example.answers = [answer]
            examples.append(example)
        return examples

    return Reading("question_answers", [path, *facts], json_list(path), convert, root)
