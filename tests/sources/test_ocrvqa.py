from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from instructkit.data.examples import Example
from tests.sources import converted, sample, write_json, write_picture

# OCR-VQA in miniature: books of all three splits in one file, and their covers.
BOOKS: dict[str, dict[str, Any]] = {
    f"{asin}": {
        "imageURL": f"http://pictures.example/images/I/{name}",
        "questions": ["Who wrote this book?", "What is the title of this book? ", "Is this a cookbook?"],
        "answers": [author, title, "No"],
        "title": title,
        "authorName": author,
        "genre": "Travel",
        "split": split,
    }
    for asin, name, author, title, split in [
        ("0001112223", "51abc.jpg", "Ada Lake", "Rivers {and} Roads", 1),
        ("B00TRAIN2X", "61def.gif", "Ben Hill", "By Train to the Sea", 1),
        ("0003334445", "71ghi.png", "Cy Moor", "Islands", 2),
        ("0004445556", "81jkl.jpg", "Di Field", "Paths", 3),
        ("0005556667", "91mno.jpg", "Ed Wood", "Trees", 3),
    ]
}


def write(root: Path) -> None:
    """Write the release: `dataset.json`, and the covers as the authors' script saves them."""
    write_json(root / "dataset.json", BOOKS)
    for number, (asin, book) in enumerate(BOOKS.items()):
        write_picture(root / "images" / f"{asin}{Path(book['imageURL']).suffix}", number)


def test_one_example_a_question_of_the_books_of_a_split(tmp_path: Path) -> None:
    write(tmp_path)
    examples, rejected = converted("ocrvqa", tmp_path, "train")
    assert rejected == []
    assert [example.id for example in examples] == [
        *(f"ocrvqa/train/0001112223/{n}" for n in range(3)),
        *(f"ocrvqa/train/B00TRAIN2X/{n}" for n in range(3)),
    ]
    assert examples[1] == Example(
        id="ocrvqa/train/0001112223/1",
        images=["0001112223.jpg"],
        question="What is the title of this book?",
        answers=["Rivers {and} Roads"],
    )
    assert examples[3].images == ["B00TRAIN2X.gif"]


@pytest.mark.parametrize(("split", "books"), [("val", ["0003334445"]), ("test", ["0004445556", "0005556667"])])
def test_splits(tmp_path: Path, split: str, books: list[str]) -> None:
    write(tmp_path)
    examples, rejected = converted("ocrvqa", tmp_path, split)
    assert rejected == []
    assert [example.id for example in examples] == [f"ocrvqa/{split}/{book}/{n}" for book in books for n in range(3)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answers": ["Ada Lake"]}, "3 questions and 1 answers"),
        ({"questions": [], "answers": []}, "0 questions and 0 answers"),
        ({"answers": ["Ada Lake", "", "No"]}, "$.answers[1]"),
        ({"answers": ["Ada Lake", None, "No"]}, "$.answers[1]"),
        ({"questions": ["Who?", " ", "What?"]}, "$.questions[1]"),
        ({"imageURL": "http://pictures.example/images/I/51abc"}, "no picture can be named"),
        ({"imageURL": "http://pictures.example"}, "no picture can be named"),
        ({"imageURL": None}, "$.imageURL"),
        ({"split": 4}, "$.split"),
        ({"split": "train"}, "$.split"),
    ],
)
def test_broken_books_are_rejected(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    write(tmp_path)
    books = json.loads((tmp_path / "dataset.json").read_text())
    books["0001112223"].update(change)
    (tmp_path / "dataset.json").write_text(json.dumps(books))
    examples, rejected = converted("ocrvqa", tmp_path, "train")
    assert {example.images[0] for example in examples} == {"B00TRAIN2X.gif"}
    assert (rejected[0].record, reason in rejected[0].reason) == ("0001112223", True)


def test_a_key_that_is_no_file_name_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"../x": BOOKS["0001112223"]}))
    examples, rejected = converted("ocrvqa", tmp_path, "train")
    assert (examples, len(rejected)) == ([], 1)


def test_authentic_record() -> None:
    examples, rejected = converted("ocrvqa", sample("ocrvqa/reconstructed"), "train")
    assert rejected == []
    assert len(examples) == 5
    assert examples[4] == Example(
        id="ocrvqa/train/761183272/4",
        images=["761183272.jpg"],
        question="What is the year printed on this calendar?",
        answers=["2016"],
    )
