"""Data of one's own, from the file to the prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from instructkit import sources
from instructkit.cli import training_sizes
from instructkit.conversion.convert import convert
from instructkit.conversion.convert_all import convert_all
from instructkit.data.dataset import find_datasets, load_examples, read_manifest
from instructkit.data.examples import Example
from instructkit.errors import UserError
from instructkit.evaluation.select import wanted_benchmarks
from instructkit.prompts.export import FORMATS
from instructkit.prompts.templates import train_templates
from tests.sources import converted, write_lines, write_picture

# Data of one's own in miniature: two files, one of them with several pictures and several answers a line.
TRAIN: list[dict[str, Any]] = [
    {"image": "photos/1.png", "instruction": "What was paid? Give the sum alone.", "answer": "12.50"},
    {"id": "till-7", "image": "photos/2.png", "instruction": "Name the shop.", "answer": ["Kiosk Nord", "the kiosk"]},
    {"id": 31, "images": ["photos/1.png", "photos/2.png"], "instruction": "Which is dearer?", "answer": "the second"},
]
VAL: list[dict[str, Any]] = [
    {"image": "photos/2.png", "instruction": "What was paid? Give the sum alone.", "answer": "3.20", "by": "Ann"},
]


def write(root: Path) -> None:
    """Write the folder."""
    for number in (1, 2):
        write_picture(root / f"photos/{number}.png", number)
    write_lines(root / "train.jsonl", TRAIN)
    write_lines(root / "val.jsonl", VAL)


ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "recipes" / "configs" / "finetune.yaml"
GOOD = {"image": "photos/1.png", "instruction": "What is this?", "answer": "a till"}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write(tmp_path / "mine")
    return tmp_path / "mine"


def test_lines_become_examples(raw: Path) -> None:
    examples, rejected = converted("jsonl", raw, "train")
    assert rejected == []
    assert examples == [
        Example(
            id="jsonl/train/1",
            images=["photos/1.png"],
            question="What was paid? Give the sum alone.",
            answers=["12.50"],
        ),
        Example(
            id="jsonl/train/till-7",
            images=["photos/2.png"],
            question="Name the shop.",
            answers=["Kiosk Nord", "the kiosk"],
        ),
        Example(
            id="jsonl/train/31",
            images=["photos/1.png", "photos/2.png"],
            question="Which is dearer?",
            answers=["the second"],
        ),
    ]


def test_the_model_reads_the_instruction_as_it_is_and_learns_every_accepted_answer() -> None:
    words = 'Wie viel?  {{ 7 * 6 }}\n<image> "sagte" er: {% if x %}'
    example = Example(id="jsonl/train/1", images=["1.png"], question=words, answers=["eins", "zwei"])
    prompts = [train_templates("llava").render(example, epoch=epoch) for epoch in range(40)]
    assert {prompt.instruction for prompt in prompts} == {words}
    assert {prompt.target for prompt in prompts} == {"eins", "zwei"}
    (wanted,) = wanted_benchmarks(["jsonl"])
    assert wanted.protocol.prompt(example).instruction == words
    assert wanted.protocol.reference(example) == ["eins", "zwei"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer": None}, "Expected `str | array`, got `null` - at `$.answer`"),
        ({"answer": 3}, "Expected `str | array`, got `int` - at `$.answer`"),
        ({"answer": " "}, "answer is blank"),
        ({"answer": ["yes", ""]}, "one of the answers is blank"),
        ({"answer": []}, "Expected `array` of length >= 1 - at `$.answer`"),
        ({"answer": "DROP"}, "Object missing required field `answer`"),
        ({"instruction": "DROP"}, "Object missing required field `instruction`"),
        ({"instruction": "\n"}, "instruction is blank"),
        ({"image": "DROP"}, "needs either image, one picture, or images, a list"),
        ({"images": ["photos/1.png"]}, "needs either image, one picture, or images, a list"),
        ({"image": "photos/gone.png"}, "photos/gone.png: missing"),
        (
            {"image": "photos/torn.png"},
            "AVIF, BMP, TIFF, PPM, JPEG2000); fetch it again",
        ),
        ({"image": "/etc/1.png"}, "path '/etc/1.png' leaves the media folder"),
        ({"id": 1}, "id 'jsonl/bad/1' was there before"),
    ],
)
def test_a_line_that_does_not_fit_is_told_with_file_line_and_key(
    change: dict[str, Any], reason: str, raw: Path, tmp_path: Path
) -> None:
    (raw / "photos/torn.png").write_bytes(b"torn")
    wrong = {key: value for key, value in {**GOOD, **change}.items() if value != "DROP"}
    write_lines(raw / "bad.jsonl", [GOOD, wrong])
    outcome = convert("jsonl", raw / "bad.jsonl", tmp_path / "data")
    (line,) = (outcome.folder / "rejected.jsonl").read_text().splitlines()
    told = json.loads(line)
    assert (told["file"], told["record"]) == ("bad.jsonl", "line 2")
    assert told["reason"].endswith(reason)
    assert outcome.manifest.examples == 1
    assert outcome.too_many_rejects


def test_a_line_that_is_no_json_does_not_end_the_file(raw: Path, tmp_path: Path) -> None:
    lines = [
        json.dumps(GOOD).encode(),
        b'{"image": "photos/1.png", "instr',
        b"\xff\xfe",
        b"",
        json.dumps(GOOD).encode(),
    ]
    (raw / "bad.jsonl").write_bytes(b"\n".join(lines))
    outcome = convert("jsonl", raw, tmp_path / "data", split="bad")
    assert [example.id for example in load_examples(outcome.folder)] == ["jsonl/bad/1", "jsonl/bad/5"]
    told = [json.loads(line)["record"] for line in (outcome.folder / "rejected.jsonl").read_text().splitlines()]
    assert told == ["line 2", "line 3"]


def test_a_file_is_a_split_by_its_name_and_several_stand_side_by_side(raw: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_lines(raw / "receipts.jsonl", [GOOD])
    write_lines(tmp_path / "elsewhere" / "menus 2.jsonl", [GOOD, GOOD])
    folders = [
        convert("jsonl", raw, data).folder,
        convert("jsonl", raw, data, split="val").folder,
        convert("jsonl", raw / "receipts.jsonl", data).folder,
        convert("jsonl", tmp_path / "elsewhere" / "menus 2.jsonl", data, images=raw).folder,
    ]
    assert [str(path.relative_to(data)) for path in folders] == [
        "jsonl/train", "jsonl/val", "jsonl/receipts", "jsonl/menus 2",
    ]  # fmt: skip
    assert find_datasets(data) == sorted(folders)
    manifest = read_manifest(data / "jsonl/receipts")
    assert [file.path for file in manifest.files] == ["receipts.jsonl"]
    assert manifest.media == {"checked": 1, "missing": 0, "broken": 0}
    assert load_examples(data / "jsonl/menus 2").media_path("photos/1.png").is_file()
    assert not convert("jsonl", raw / "receipts.jsonl", data).converted
    sizes, left_out = training_sizes([data])
    assert sizes == {"jsonl": 3, "jsonl/receipts": 1, "jsonl/menus 2": 2}
    assert left_out == ["jsonl/val"]


def test_it_is_shown_as_the_model_will_read_it(raw: Path, tmp_path: Path) -> None:
    folder = convert("jsonl", raw, tmp_path / "data").folder
    preview = "".join(FORMATS["preview"]([folder], None, 0, 2))
    assert "instruction What was paid? Give the sum alone.\n  target      12.50\n" in preview
    assert f"picture     {raw / 'photos/2.png'}" in preview
    (first, *_) = map(json.loads, FORMATS["messages"]([folder], None, 0, None))
    assert [part["text"] for message in first["messages"] for part in message["content"] if "text" in part] == [
        "What was paid? Give the sum alone.", "12.50",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("place", "split", "message"),
    [
        ("gone.jsonl", None, "gone.jsonl: no such file or folder"),
        ("receipts.jsonl", "train", "is the split 'receipts' by its name, not 'train'"),
        ("receipts.csv", None, "your own data are JSON lines"),
        (".", "menus", "none of menus.jsonl is here"),
        (".", "../val", "jsonl has no split '../val'; it has train, val"),
        (".", "a/b", "jsonl has no split 'a/b'; it has train, val"),
    ],
)
def test_a_file_that_is_not_there_or_not_what_was_asked_for(
    place: str, split: str | None, message: str, raw: Path, tmp_path: Path
) -> None:
    for name in ("receipts.jsonl", "receipts.csv"):
        write_lines(raw / name, [GOOD])
    with pytest.raises(UserError) as caught:
        convert("jsonl", raw / place, tmp_path / "data", split=split)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_convert_all_leaves_ones_own_data_alone(raw: Path, tmp_path: Path) -> None:
    raw.rename(tmp_path / "jsonl")
    results = list(convert_all(tmp_path, tmp_path / "data"))
    assert "jsonl" not in {result.source for result in results}
    assert {source.name for source in sources.sources() if source.own} == {"jsonl"}


def test_a_picture_that_is_mended_is_seen_by_the_next_conversion(raw: Path, tmp_path: Path) -> None:
    (raw / "photos/2.png").unlink()
    assert convert("jsonl", raw, tmp_path / "data").manifest.media == {"checked": 2, "missing": 1, "broken": 0}
    write_picture(raw / "photos/2.png")
    outcome = convert("jsonl", raw, tmp_path / "data")
    assert (outcome.converted, outcome.manifest.rejected) == (True, 0)
