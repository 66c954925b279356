from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from instructkit.data.examples import Example
from tests.sources import converted, sample, write_json, write_picture

# OK-VQA in miniature: questions and annotations of both splits, and their pictures.
LICENSE = {"url": "http://creativecommons.org/licenses/by/4.0/", "name": "Creative Commons Attribution 4.0"}
TYPES = {"one": "Vehicles and Transportation", "four": "Sports and Recreation", "five": "Cooking and Food"}

QUESTIONS = [
    {"image_id": 139, "question": "Which country is this dish from?", "question_id": 1395},
    {"image_id": 285, "question": "What is the man doing with his board?", "question_id": 2855},
]
RAW_ANSWERS = {
    1395: ["Italy"] * 4 + ["Spain"] * 2 + ["Greece"] * 2 + ["France"] * 2,
    2855: ["surfing"] * 6 + ["racing"] * 2 + ["waiting"] * 2,
}
STEMS = {"surfing": "surf", "racing": "race", "waiting": "wait"}


def annotation(question: dict[str, Any]) -> dict[str, Any]:
    """An entry of `annotations` with the keys of the release."""
    number = question["question_id"]
    answers = [
        {"answer_id": place, "raw_answer": raw, "answer_confidence": "yes", "answer": STEMS.get(raw, raw.lower())}
        for place, raw in enumerate(RAW_ANSWERS[number], 1)
    ]
    return {
        "image_id": question["image_id"],
        "answer_type": "other",
        "question_type": "five" if number == 1395 else "four",
        "question_id": number,
        "answers": answers,
        "confidence": 3,
    }


def write(root: Path) -> None:
    """Write the release, its files directly in `root`."""
    for split in ("train", "val"):
        head = {"license": LICENSE, "data_subtype": f"{split}2014"}
        questions = {**head, "task_type": "Open-Ended", "questions": QUESTIONS, "data_type": "mscoco"}
        annotations = {**head, "question_types": TYPES, "annotations": [annotation(entry) for entry in QUESTIONS]}
        write_json(root / f"OpenEnded_mscoco_{split}2014_questions.json", questions)
        write_json(root / f"mscoco_{split}2014_annotations.json", annotations)
        for number in (139, 285):
            write_picture(root / f"{split}2014" / f"COCO_{split}2014_{number:012d}.jpg", number)


def test_whole_examples(tmp_path: Path) -> None:
    write(tmp_path)
    assert converted("okvqa", tmp_path, "train") == (
        [
            Example(
                id="okvqa/train/1395",
                images=["train2014/COCO_train2014_000000000139.jpg"],
                question="Which country is this dish from?",
                answers=["italy"] * 4 + ["spain"] * 2 + ["greece"] * 2 + ["france"] * 2,
                meta={"question_type": "five", "answer_type": "other"},
            ),
            Example(
                id="okvqa/train/2855",
                images=["train2014/COCO_train2014_000000000285.jpg"],
                question="What is the man doing with his board?",
                answers=["surf"] * 6 + ["race"] * 2 + ["wait"] * 2,
                meta={"question_type": "four", "answer_type": "other"},
            ),
        ],
        [],
    )


def test_val_is_found_in_subfolders(tmp_path: Path) -> None:
    write(tmp_path / "flat")
    for name, folder in [
        ("OpenEnded_mscoco_val2014_questions", "questions"),
        ("mscoco_val2014_annotations", "annotations"),
    ]:
        (tmp_path / folder).mkdir()
        (tmp_path / "flat" / f"{name}.json").rename(tmp_path / folder / f"{name}.json")
    examples, _ = converted("okvqa", tmp_path, "val")
    assert [example.images for example in examples] == [
        ["val2014/COCO_val2014_000000000139.jpg"],
        ["val2014/COCO_val2014_000000000285.jpg"],
    ]


def test_a_question_is_never_paired_with_the_answers_of_another(tmp_path: Path) -> None:
    """LAVIS' collaters did so; here ids decide, not places."""
    write(tmp_path)
    path = tmp_path / "mscoco_train2014_annotations.json"
    content = json.loads(path.read_text())
    first, second = content["annotations"]
    first["question_id"], second["question_id"] = second["question_id"], first["question_id"]
    path.write_text(json.dumps(content))
    examples, rejected = converted("okvqa", tmp_path, "train")
    assert examples == []
    assert [reject.reason for reject in rejected] == [
        "annotated for image 139, asked about image 285",
        "annotated for image 285, asked about image 139",
    ]


def test_authentic_record_and_questions_without_their_annotations(tmp_path: Path) -> None:
    """The excerpt has 50 questions and the annotation of one: that one converts, 49 are rejected with the reason."""
    for path in (
        sample("okvqa/OpenEnded_mscoco_train2014_questions.json"),
        sample("okvqa/reconstructed/mscoco_train2014_annotations.json"),
    ):
        (tmp_path / path.name).symlink_to(path)
    examples, rejected = converted("okvqa", tmp_path, "train")
    assert len(examples) == 1
    assert examples[0] == Example(
        id="okvqa/train/516065",
        images=["train2014/COCO_train2014_000000051606.jpg"],
        question="What is the hairstyle of the blond called?",
        answers=["pony tail"] * 6 + ["braid"] * 2 + ["ponytail"] * 2,
        meta={"question_type": "four", "answer_type": "other"},
    )
    assert len(rejected) == 49
    assert {reject.reason for reject in rejected} == {
        "no annotation has this question_id, or another question has it too"
    }
