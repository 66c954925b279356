from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from instructkit.data.examples import Example
from tests.sources import converted, write_json, write_picture


def pair(number: int, image: int, question: str, answer: str) -> dict[str, Any]:
    return {
        "a_objects": [],
        "question": question,
        "image_id": image,
        "qa_id": number,
        "answer": answer,
        "q_objects": [],
    }


ASKED = [
    {
        "id": 1,
        "qas": [pair(986769, 1, "What color is the clock?", "Green."), pair(986768, 1, "How tall?", "Very tall")],
    },
    {"id": 713420, "qas": [pair(5, 713420, " Who is there?", "Mr. Green.")]},
    {"id": 2, "qas": []},
]


def write(root: Path) -> None:
    """Questions of three images, of which the second lies in the second folder."""
    write_json(root / "question_answers.json", ASKED)
    for number, path in enumerate(("VG_100K/1", "VG_100K_2/713420", "VG_100K/2")):
        write_picture(root / f"{path}.jpg", number)


def test_every_question_is_an_example(tmp_path: Path) -> None:
    write(tmp_path)
    examples, rejected = converted("vg_vqa", tmp_path, "train")
    assert rejected == []
    assert examples[0] == Example(
        id="vg_vqa/train/986769", images=["VG_100K/1.jpg"], question="What color is the clock?", answers=["Green"]
    )
    assert [example.answers for example in examples] == [["Green"], ["Very tall"], ["Mr. Green"]]
    assert examples[2].images == ["VG_100K_2/713420.jpg"]
    assert examples[2].question == "Who is there?"


@pytest.mark.parametrize("images", ["", "images"])
def test_image_data_says_where_a_picture_is_before_the_disk_does(tmp_path: Path, images: str) -> None:
    write_json(tmp_path / "question_answers.json", ASKED)
    stem = "https://cs.stanford.edu/people/rak248"
    facts = [{"image_id": 1, "url": f"{stem}/VG_100K_2/1.jpg"}, {"image_id": "x"}, {"image_id": 2, "url": "elsewhere"}]
    write_json(tmp_path / "image_data.json", facts)
    write_picture(tmp_path / images / "VG_100K" / "1.jpg")
    write_picture(tmp_path / images / "VG_100K_2" / "713420.jpg")
    examples, _ = converted("vg_vqa", tmp_path, "train")
    assert [example.images for example in examples] == [["VG_100K_2/1.jpg"]] * 2 + [["VG_100K_2/713420.jpg"]]


def test_what_does_not_fit_is_rejected(tmp_path: Path) -> None:
    bad = [
        {"id": 1, "qas": [pair(1, 2, "What?", "A cat.")]},
        {"id": 2, "qas": [pair(2, 2, "What?", " . ")]},
        {"id": 3, "qas": [pair(3, 3, " ", "A cat.")]},
    ]
    write_json(tmp_path / "question_answers.json", [*bad, ASKED[0]])
    examples, rejected = converted("vg_vqa", tmp_path, "train")
    assert [reject.record for reject in rejected] == ["0", "1", "2"]
    assert rejected[0].reason == "question 1 is of image 2, among those of image 1"
    assert rejected[1].reason == "question 2 has no answer but a full stop"
    assert len(examples) == 2
