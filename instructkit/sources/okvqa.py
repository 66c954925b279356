"""OK-VQA: questions about COCO 2014 images that need knowledge from outside the picture, ten answers each."""

from __future__ import annotations

from pathlib import Path

from instructkit.data.folders import media_folder, spots
from instructkit.data.readers import require
from instructkit.sources import Reading, Source, Split
from instructkit.sources._shared import vqa

_QUESTIONS = "OpenEnded_mscoco_{}2014_questions.json"
_ANNOTATIONS = "mscoco_{}2014_annotations.json"

SOURCE = Source(
    name="okvqa",
    title="OKVQA",
    task="knowledge_vqa",
    role="held-in",
    split="train",
    splits={
        "train": Split((_QUESTIONS.format("train"), _ANNOTATIONS.format("train")), published=9_009),
        "val": Split(
            (_QUESTIONS.format("val"), _ANNOTATIONS.format("val")),
            published=5_046,
            note="papers call it the test split",
        ),
    },
    images="train2014/COCO_train2014_{image_id:012d}.jpg and val2014/",
    tree="""\
okvqa/
├── OpenEnded_mscoco_train2014_questions.json      (files may lie in annotations/ or questions/)
├── mscoco_train2014_annotations.json
├── OpenEnded_mscoco_val2014_questions.json
├── mscoco_val2014_annotations.json
└── train2014/COCO_train2014_000000051606.jpg ...  (or images/train2014/ ..., or --images COCO)""",
    licence="CC BY 4.0",
    home="https://okvqa.allenai.org",
    record=vqa.Record,
    citation="Marino et al. 2019, arXiv:1906.00067; release v1.1 (`answer` is the stemmed form of `raw_answer`)",
)


def read(raw: Path, split: str) -> Reading:
    """Read the questions of a split and their annotations; answers are `answer`, which the benchmark scores."""
    questions = require(raw, *spots(_QUESTIONS.format(split), folders=("annotations", "questions")))
    annotations = require(raw, *spots(_ANNOTATIONS.format(split)))
    image = f"{split}2014/COCO_{split}2014_{{:012d}}.jpg"
    return Reading(
        layout="questions and annotations",
        files=[questions, annotations],
        records=vqa.pair(questions, annotations),
        convert=vqa.converter("okvqa", split, image, answered=True),
        media_root=media_folder(raw, "images"),
    )
