from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from instructkit import sources
from instructkit.data.examples import Example
from instructkit.errors import UserError
from tests.sources import converted, sample, write_lines, write_picture

# Visual Spatial Reasoning in miniature: the data folder of the repository, both versions, pictures in `images/`.
LINES: list[dict[str, Any]] = [
    {
        "image": "000000000021.jpg",
        "image_link": "http://images.cocodataset.org/train2017/000000000021.jpg",
        "caption": "The lamp is above the sofa.",
        "label": 1,
        "relation": "above",
        "subj": "lamp",
        "obj": "sofa",
        "annotator_id": 4,
        "vote_true_validator_id": "[2, 9]",
        "vote_false_validator_id": "[]",
    },
    {
        "image": "000000000022.jpg",
        "image_link": "http://images.cocodataset.org/val2017/000000000022.jpg",
        "caption": "The goat is facing away from the gate.",
        "label": 0,
        "relation": "facing away from",
        "subj": "goat",
        "obj": "gate",
        "annotator_id": 5,
        "vote_true_validator_id": "[3]",
        "vote_false_validator_id": "[2, 8]",
    },
]


def write(root: Path) -> None:
    """Write the release; lines of the random version have a frame of reference in place of subject and object."""
    random = [{key: value for key, value in line.items() if key not in ("subj", "obj")} for line in LINES]
    for part in ("train", "dev", "test"):
        write_lines(root / "splits" / "zeroshot" / f"{part}.jsonl", LINES)
        write_lines(
            root / "splits" / "random" / f"{part}.jsonl", [{**line, "reference_frame": None} for line in random]
        )
    for number, line in enumerate(LINES):
        write_picture(root / "images" / line["image"], number)


LAMP = Example(
    id="vsr/test/1",
    images=["000000000021.jpg"],
    statement="The lamp is above the sofa.",
    answers=["true"],
    choices=["false", "true"],
    choice=1,
    meta={"relation": "above"},
)
GOAT = Example(
    id="vsr/test/2",
    images=["000000000022.jpg"],
    statement="The goat is facing away from the gate.",
    answers=["false"],
    choices=["false", "true"],
    choice=0,
    meta={"relation": "facing away from"},
)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


def test_the_label_is_the_index_of_the_choice(raw: Path) -> None:
    assert converted("vsr", raw, "test") == ([LAMP, GOAT], [])
    assert sources.module("vsr").read(raw, "test").media_root == raw / "images"


def test_both_versions_are_read_and_named(raw: Path) -> None:
    assert sources.module("vsr").read(raw, "test").layout == "zeroshot, 2 lines, pictures in images"
    assert sources.module("vsr").read(raw, "random-test").layout == "random, 2 lines, pictures in images"
    examples, rejected = converted("vsr", raw, "random-test")
    assert rejected == []
    assert [example.id for example in examples] == ["vsr/random-test/1", "vsr/random-test/2"]


def test_a_file_of_the_random_version_is_never_read_as_the_other(raw: Path) -> None:
    shutil.rmtree(raw / "splits" / "zeroshot")
    with pytest.raises(UserError, match=r"splits/zeroshot/test\.jsonl"):
        converted("vsr", raw, "test")


def test_a_file_out_of_its_folder_is_read_without_a_claim_which_version_it_is(raw: Path) -> None:
    (raw / "splits" / "zeroshot" / "test.jsonl").rename(raw / "test.jsonl")
    assert sources.module("vsr").read(raw, "test").layout.startswith("zeroshot or random, 2 lines")
    assert converted("vsr", raw, "test") == ([LAMP, GOAT], [])


def test_without_its_own_folder_pictures_are_looked_for_in_both_of_coco(raw: Path) -> None:
    shutil.rmtree(raw / "images")
    examples, _ = converted("vsr", raw, "test")
    assert [example.images for example in examples] == [["train2017/000000000021.jpg"], ["val2017/000000000022.jpg"]]
    assert sources.module("vsr").read(raw, "test").media_root == raw


def test_examples_share_no_list(raw: Path) -> None:
    first, second = converted("vsr", raw, "test")[0]
    first.choices.append("perhaps")
    assert second.choices == ["false", "true"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"label": 2}, "Expected `int` <= 1 - at `$.label`"),
        ({"label": "1"}, "Expected `int`, got `str` - at `$.label`"),
        ({"label": True}, "Expected `int`, got `bool` - at `$.label`"),
        ({"caption": ""}, "at `$.caption`"),
        ({"image": "21.jpg"}, "at `$.image`"),
        ({"image": "000000000023.jpg"}, "image is 000000000023.jpg, but image_link ends with 000000000021.jpg"),
        ({"image_link": "http://images.cocodataset.org/test2017/000000000021.jpg"}, "at `$.image_link`"),
    ],
)
def test_broken_lines_are_rejected_with_the_reason(raw: Path, change: dict[str, Any], reason: str) -> None:
    write_lines(raw / "splits" / "zeroshot" / "test.jsonl", [{**LINES[0], **change}, LINES[1]])
    examples, rejected = converted("vsr", raw, "test")
    assert examples == [GOAT]
    assert (rejected[0].file, rejected[0].record) == ("test.jsonl", "line 1")
    assert rejected[0].reason.endswith(reason)


@pytest.mark.parametrize("split", ["train", "dev", "test", "random-train", "random-dev", "random-test"])
def test_authentic_excerpts_convert_whole(split: str) -> None:
    examples, rejected = converted("vsr", sample("vsr"), split)
    assert rejected == []
    assert len({example.id for example in examples}) == len(examples) == 50


def test_authentic_records_by_hand() -> None:
    examples, _ = converted("vsr", sample("vsr"), "test")
    assert examples[0] == Example(
        id="vsr/test/1",
        images=["train2017/000000017697.jpg"],
        statement="The car is behind the suitcase.",
        answers=["true"],
        choices=["false", "true"],
        choice=1,
        meta={"relation": "behind"},
    )
    assert (examples[2].statement, examples[2].choice) == ("The handbag is right of the cat.", 0)
    framed, _ = converted("vsr", sample("vsr"), "random-test")
    assert (framed[1].statement, framed[1].answers) == ("The cake consists of the dog.", ["true"])
