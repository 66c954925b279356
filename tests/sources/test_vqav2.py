from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from instructkit.data.examples import Example
from instructkit.errors import UserError
from tests.sources import converted, sample, write_json, write_picture

# VQAv2 in miniature: questions and annotations of two splits, questions alone of two, and their pictures.
INFO = {"description": "A tiny release in the layout of VQA v2.0.", "version": "2.0", "year": 2017}
LICENSE = {"url": "http://creativecommons.org/licenses/by/4.0/", "name": "Creative Commons Attribution 4.0"}

QUESTIONS = [
    {"image_id": 9, "question": "How many bowls are on the tray?", "question_id": 9000},
    {"image_id": 9, "question": "Is the soup hot?", "question_id": 9001},
    {"image_id": 25, "question": "Where does the giraffe stand?", "question_id": 25000},
]
ANSWERS = {
    9000: ["4", "4", "4", "3", "4", "four", "4", "4", "5", "4"],
    9001: ["yes"] * 6 + ["no"] * 4,
    25000: ["field", "zoo", "in grass", "field", "zoo", "field", "outside", "field", "zoo", "grass"],
}
KINDS = {9000: ("how many", "number"), 9001: ("is the", "yes/no"), 25000: ("where", "other")}


def annotation(question: dict[str, Any]) -> dict[str, Any]:
    """An entry of `annotations` with the keys of the release."""
    number = question["question_id"]
    answers = ANSWERS[number]
    return {
        "question_type": KINDS[number][0],
        "multiple_choice_answer": max(answers, key=answers.count),
        "answers": [
            {"answer": answer, "answer_confidence": "yes", "answer_id": place}
            for place, answer in enumerate(answers, 1)
        ],
        "image_id": question["image_id"],
        "answer_type": KINDS[number][1],
        "question_id": number,
    }


def write(root: Path) -> None:
    """Write the release, its files directly in `root`."""
    for subset in ("train2014", "val2014", "test-dev2015", "test2015"):
        head = {"info": INFO, "license": LICENSE, "data_type": "mscoco", "data_subtype": subset}
        write_json(root / f"v2_OpenEnded_mscoco_{subset}_questions.json", {**head, "questions": QUESTIONS})
        if not subset.startswith("test"):
            annotations = [annotation(question) for question in reversed(QUESTIONS)]
            write_json(root / f"v2_mscoco_{subset}_annotations.json", {**head, "annotations": annotations})
        folder = subset.replace("test-dev", "test")
        for number in (9, 25):
            write_picture(root / folder / f"COCO_{folder}_{number:012d}.jpg", number)


BOWLS = Example(
    id="vqav2/train/9000",
    images=["train2014/COCO_train2014_000000000009.jpg"],
    question="How many bowls are on the tray?",
    answers=["4", "4", "4", "3", "4", "four", "4", "4", "5", "4"],
    meta={"question_type": "how many", "answer_type": "number"},
)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


def edit(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def annotation_file(raw: Path) -> Path:
    return raw / "v2_mscoco_train2014_annotations.json"


def question_file(raw: Path) -> Path:
    return raw / "v2_OpenEnded_mscoco_train2014_questions.json"


def test_questions_meet_their_annotations_in_the_order_of_the_annotations(raw: Path) -> None:
    examples, rejected = converted("vqav2", raw, "train")
    assert rejected == []
    assert [example.id for example in examples] == ["vqav2/train/25000", "vqav2/train/9001", "vqav2/train/9000"]
    assert examples[2] == BOWLS
    assert examples[1].answers == ["yes"] * 6 + ["no"] * 4


def test_val_looks_for_its_own_pictures(raw: Path) -> None:
    examples, _ = converted("vqav2", raw, "val")
    assert examples[0].images == ["val2014/COCO_val2014_000000000025.jpg"]


@pytest.mark.parametrize("split", ["test", "test-dev"])
def test_test_splits_have_questions_without_answers(raw: Path, split: str) -> None:
    examples, rejected = converted("vqav2", raw, split)
    assert rejected == []
    assert examples[0] == Example(
        id=f"vqav2/{split}/9000",
        images=["test2015/COCO_test2015_000000000009.jpg"],
        question="How many bowls are on the tray?",
    )
    assert len(examples) == 3


def test_files_may_lie_in_subfolders(raw: Path) -> None:
    for folder, path in [("annotations", annotation_file(raw)), ("questions", question_file(raw))]:
        (raw / folder).mkdir()
        path.rename(raw / folder / path.name)
    assert len(converted("vqav2", raw, "train")[0]) == 3


def test_question_without_annotation_and_annotation_without_question_are_rejected(raw: Path) -> None:
    edit(annotation_file(raw), lambda file: file["annotations"][0].update(question_id=77))
    examples, rejected = converted("vqav2", raw, "train")
    assert [example.id for example in examples] == ["vqav2/train/9001", "vqav2/train/9000"]
    assert [(reject.file, reject.record, reject.reason) for reject in rejected] == [
        (
            annotation_file(raw).name,
            "annotations[0]",
            "no question has this question_id, or another annotation has it too",
        ),
        (question_file(raw).name, "questions[2]", "no annotation has this question_id, or another question has it too"),
    ]


def test_repeated_ids_never_make_two_examples(raw: Path) -> None:
    edit(annotation_file(raw), lambda file: file["annotations"].append(file["annotations"][0]))
    edit(question_file(raw), lambda file: file["questions"].append(file["questions"][1]))
    examples, rejected = converted("vqav2", raw, "train")
    assert len({example.id for example in examples}) == len(examples) == 3
    assert [reject.record for reject in rejected] == ["annotations[3]", "questions[3]"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image_id": 26}, "annotated for image 26, asked about image 25"),
        ({"answers": []}, "no answer that is not blank"),
        ({"answers": [{"answer": " "}] * 10}, "no answer that is not blank"),
        ({"answers": "field"}, "Expected `array`, got `str` - at `$.annotation.answers`"),
        ({"answers": [{"text": "field"}]}, "Object missing required field `answer` - at `$.annotation.answers[0]`"),
        ({"question_id": "25000"}, "Expected `int`, got `str` - at `$.annotation.question_id`"),
        ({"answer_type": None}, "Expected `str`, got `null` - at `$.annotation.answer_type`"),
    ],
)
def test_broken_annotations_are_rejected_with_the_reason(raw: Path, change: dict[str, Any], reason: str) -> None:
    edit(annotation_file(raw), lambda file: file["annotations"][0].update(change))
    examples, rejected = converted("vqav2", raw, "train")
    assert [example.id for example in examples] == ["vqav2/train/9001", "vqav2/train/9000"]
    assert (rejected[0].record, rejected[0].reason) == ("annotations[0]", reason)


@pytest.mark.parametrize("change", [{"question": "  "}, {"question": None}, {"image_id": -9}])
def test_broken_questions_are_rejected(raw: Path, change: dict[str, Any]) -> None:
    edit(question_file(raw), lambda file: file["questions"][0].update(change))
    examples, rejected = converted("vqav2", raw, "train")
    assert (len(examples), len(rejected)) == (2, 1)


def test_a_blank_answer_among_ten_keeps_its_place(raw: Path) -> None:
    edit(annotation_file(raw), lambda file: file["annotations"][2]["answers"][3].update(answer=""))
    assert converted("vqav2", raw, "train")[0][2].answers == ["4", "4", "4", "", "4", "four", "4", "4", "5", "4"]


def test_missing_annotations_are_an_error_that_names_the_file(raw: Path) -> None:
    annotation_file(raw).unlink()
    with pytest.raises(UserError, match=r"v2_mscoco_train2014_annotations\.json"):
        converted("vqav2", raw, "train")


def test_authentic_excerpt_converts_whole() -> None:
    examples, rejected = converted("vqav2", sample("vqav2"), "val")
    assert rejected == []
    assert len(examples) == 50
    assert all(len(example.answers) == 10 for example in examples)
    first = examples[0]
    assert (first.id, first.question) == ("vqav2/val/262148000", "Where is he looking?")
    assert first.images == ["val2014/COCO_val2014_000000262148.jpg"]
    assert first.answers[:6] == ["down", "down", "at table", "skateboard", "down", "table"]
    assert first.meta == {"question_type": "none of the above", "answer_type": "other"}
    last = examples[-1]
    assert (last.id, last.question) == ("vqav2/val/393243001", "What is the child eating?")
    assert last.answers[3:] == ["doughnut", "donut", "donut", "donut", "donut hole", "donut", "donut"]
