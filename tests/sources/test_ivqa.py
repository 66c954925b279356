from __future__ import annotations

import csv
from pathlib import Path

import pytest

from instructkit import sources
from instructkit.data.examples import Example
from instructkit.data.media import load_frames
from tests.sources import converted
from tests.sources.clips import write_video

# iVQA in miniature: three files of questions and two whole videos.
COLUMNS = ["video_id", "start", "end", "question", "answer1", "answer2", "answer3", "answer4", "answer5", "type"]
ROWS = [
    ["aB-dE_gHiJ0", "0", "1", "What is poured into the bowl?", "milk", "milk", "cream", "milk", "white liquid", "2"],
    ["zZ9yY8xX7wW", "0.5", "2", "Which tool, if any, is used?", "whisk", "", "a whisk", "whisk", "", "1"],
]


def write_rows(path: Path, rows: list[list[str]], columns: list[str] = COLUMNS) -> None:
    """Write a CSV file with a header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


def write(root: Path) -> None:
    """Write the release; videos are longer than the clips in question."""
    for split in ("train", "val", "test"):
        write_rows(root / f"{split}.csv", ROWS)
    for number, row in enumerate(ROWS):
        write_video(root / "video" / f"{row[0]}.mp4", number, seconds=3)


BOWL = Example(
    id="ivqa/test/aB-dE_gHiJ0/1",
    video="aB-dE_gHiJ0.mp4",
    start=0.0,
    end=1.0,
    question="What is poured into the bowl?",
    answers=["milk", "milk", "cream", "milk", "white liquid"],
)
WHISK = Example(
    id="ivqa/test/zZ9yY8xX7wW/2",
    video="zZ9yY8xX7wW.mp4",
    start=0.5,
    end=2.0,
    question="Which tool, if any, is used?",
    answers=["whisk", "a whisk", "whisk"],
)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


def test_five_answers_repeats_kept_and_empty_cells_left_out(raw: Path) -> None:
    assert converted("ivqa", raw, "test") == ([BOWL, WHISK], [])


def test_the_clip_is_read_out_of_the_whole_video(raw: Path) -> None:
    root = sources.module("ivqa").read(raw, "test").media_root
    whole, clip = load_frames(root / "zZ9yY8xX7wW.mp4", 4), load_frames(root / "zZ9yY8xX7wW.mp4", 4, 0.5, 2.0)
    assert [frame.tobytes() for frame in whole] != [frame.tobytes() for frame in clip]


def test_videos_that_are_cut_already_have_no_start_and_end(raw: Path) -> None:
    (raw / "video" / "zZ9yY8xX7wW.mp4").rename(raw / "video" / "zZ9yY8xX7wW_0.5_2.webm")
    examples, _ = converted("ivqa", raw, "test")
    assert examples[0] == BOWL
    assert (examples[1].video, examples[1].start, examples[1].end) == ("zZ9yY8xX7wW_0.5_2.webm", None, None)


def test_order_of_columns_does_not_matter_and_others_are_ignored(raw: Path) -> None:
    columns = ["confidence1", *reversed(COLUMNS)]
    write_rows(raw / "test.csv", [["5", *reversed(row)] for row in ROWS], columns)
    assert converted("ivqa", raw, "test") == ([BOWL, WHISK], [])


@pytest.mark.parametrize("answer", ["nan", "None", "NA", "007"])
def test_answers_that_look_like_missing_values_or_numbers_stay_as_written(raw: Path, answer: str) -> None:
    write_rows(raw / "test.csv", [[*ROWS[0][:4], answer, "", "", "", "", "2"]])
    assert converted("ivqa", raw, "test")[0][0].answers == [answer]


@pytest.mark.parametrize(
    ("column", "cell", "reason"),
    [
        ("video_id", "short", "at `$.video_id`"),
        ("video_id", "../../etc/x", "at `$.video_id`"),
        ("start", "", "at `$.start`"),
        ("start", "soon", "at `$.start`"),
        ("start", "-1", "start -1.0 and end 1.0 are no clip"),
        ("end", "0", "start 0.0 and end 0.0 are no clip"),
        ("question", "", "at `$.question`"),
    ],
)
def test_broken_rows_are_rejected_with_the_reason(raw: Path, column: str, cell: str, reason: str) -> None:
    row = list(ROWS[0])
    row[COLUMNS.index(column)] = cell
    write_rows(raw / "test.csv", [row, ROWS[1]])
    examples, rejected = converted("ivqa", raw, "test")
    assert examples == [WHISK]
    assert (rejected[0].file, rejected[0].record) == ("test.csv", "row 1")
    assert rejected[0].reason.endswith(reason)


@pytest.mark.parametrize("cell", ["nan", "inf"])
def test_seconds_that_are_no_number_are_rejected(raw: Path, cell: str) -> None:
    write_rows(raw / "test.csv", [[ROWS[0][0], "0", cell, *ROWS[0][3:]], ROWS[1]])
    examples, rejected = converted("ivqa", raw, "test")
    assert (examples, len(rejected)) == ([WHISK], 1)


def test_rows_with_too_many_or_too_few_cells_are_rejected_not_shifted(raw: Path) -> None:
    row = ROWS[0]
    write_rows(raw / "test.csv", [[*row[:4], "salt", *row[4:]], row[:6], ROWS[1]])
    examples, rejected = converted("ivqa", raw, "test")
    assert examples[0].id == "ivqa/test/zZ9yY8xX7wW/3"
    assert [reject.reason for reject in rejected] == [
        "more cells than columns, so cells may be shifted: 2",
        "Object missing required field `answer3`",
    ]


def test_a_row_without_any_answer_is_rejected(raw: Path) -> None:
    write_rows(raw / "test.csv", [[*ROWS[0][:4], "", " ", "", "", "", "2"]])
    assert converted("ivqa", raw, "test")[1][0].reason == "none of the five answers is there"
