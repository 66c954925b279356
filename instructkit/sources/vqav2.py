"""VQA v2.0: open questions about COCO 2014 and 2015 images, ten human answers each."""

from __future__ import annotations

from pathlib import Path

from instructkit.data.folders import media_folder, spots
from instructkit.data.readers import require
from instructkit.sources import Reading, Source, Split
from instructkit.sources._shared import vqa

_QUESTIONS = "v2_OpenEnded_mscoco_{}_questions.json"
_ANNOTATIONS = "v2_mscoco_{}_annotations.json"
_SUBSETS = {"train": "train2014", "val": "val2014", "test-dev": "test-dev2015", "test": "test2015"}

SOURCE = Source(
    name="vqav2",
    title="VQAv2",
    task="vqa",
    role="held-in",
    split="train",
    splits={
        "train": Split((_QUESTIONS.format("train2014"), _ANNOTATIONS.format("train2014")), published=443_757),
        "val": Split((_QUESTIONS.format("val2014"), _ANNOTATIONS.format("val2014")), published=214_354),
        "test-dev": Split((_QUESTIONS.format("test-dev2015"),), published=107_394, note="no answers", hidden=True),
        "test": Split((_QUESTIONS.format("test2015"),), published=447_793, note="no answers", hidden=True),
    },
    images="train2014/COCO_train2014_{image_id:012d}.jpg, likewise val2014/ and test2015/",
    tree="""\
vqav2/
├── v2_OpenEnded_mscoco_train2014_questions.json     (files may lie in annotations/ or questions/)
├── v2_mscoco_train2014_annotations.json
├── v2_OpenEnded_mscoco_val2014_questions.json
├── v2_mscoco_val2014_annotations.json
├── v2_OpenEnded_mscoco_test-dev2015_questions.json
├── v2_OpenEnded_mscoco_test2015_questions.json
└── train2014/COCO_train2014_000000000009.jpg ...    (or images/train2014/ ..., or --images COCO)""",
    licence="CC BY 4.0",
    home="https://visualqa.org",
    record=vqa.Record,
    citation="Goyal et al. 2017, arXiv:1612.00837",
)


def read(raw: Path, split: str) -> Reading:
    """Read the questions of a split and, but for the test splits, their annotations."""
    subset = _SUBSETS[split]
    name = _QUESTIONS.format(subset)
    questions = require(raw, *spots(name, folders=("annotations", "questions")))
    annotations = None
    if not split.startswith("test"):
        name = _ANNOTATIONS.format(subset)
        annotations = require(raw, *spots(name))
    folder = subset.replace("test-dev", "test")
    return Reading(
        layout="questions and annotations" if annotations else "questions",
        files=[questions, annotations] if annotations else [questions],
        records=vqa.pair(questions, annotations),
        convert=vqa.converter("vqav2", split, f"{folder}/COCO_{folder}_{{:012d}}.jpg", annotations is not None),
        media_root=media_folder(raw, "images"),
    )
