from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from instructkit import sources
from instructkit.data.examples import Example
from instructkit.data.media import load_frames
from instructkit.errors import UserError
from tests.sources import converted, sample, write_json
from tests.sources.clips import write_video

# MSVD-QA in miniature: three files of questions, the mapping, and the clips as AVI.
MAPPING = "-8aBcDeFgHi_5_15 vid1\nQq_rStUvWxY_0_9 vid2\n"
QUESTIONS: list[dict[str, Any]] = [
    {"answer": "juggle", "id": 0, "question": "what is a clown doing?", "video_id": 1},
    {"answer": "woman", "id": 1, "question": "who folds a paper bird?", "video_id": 2},
    {"answer": "three", "id": 2, "question": "how many balls does a clown throw?", "video_id": 1},
]


def write(root: Path) -> None:
    """Write the release; ids count on from split to split."""
    for place, split in enumerate(("train", "val", "test")):
        write_json(
            root / f"{split}_qa.json", [{**question, "id": question["id"] + 3 * place} for question in QUESTIONS]
        )
    (root / "youtube_mapping.txt").write_text(MAPPING, encoding="utf-8")
    write_video(root / "YouTubeClips" / "-8aBcDeFgHi_5_15.avi", 1)
    write_video(root / "YouTubeClips" / "Qq_rStUvWxY_0_9.avi", 2)


CLOWN = Example(
    id="msvd_qa/test/6",
    video="-8aBcDeFgHi_5_15.avi",
    question="what is a clown doing?",
    answers=["juggle"],
)
BIRD = Example(id="msvd_qa/test/7", video="Qq_rStUvWxY_0_9.avi", question="who folds a paper bird?", answers=["woman"])


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


def test_the_mapping_tells_the_clip(raw: Path) -> None:
    examples, rejected = converted("msvd_qa", raw, "test")
    assert rejected == []
    assert examples[:2] == [CLOWN, BIRD]
    assert examples[2].video == CLOWN.video
    root = sources.module("msvd_qa").read(raw, "test").media_root
    assert root == raw / "YouTubeClips"
    assert len(load_frames(root / "-8aBcDeFgHi_5_15.avi", 4)) == 4


def test_clips_in_another_container_are_found_under_their_suffix(raw: Path) -> None:
    folder = raw / "YouTubeClips"
    (folder / "Qq_rStUvWxY_0_9.avi").rename(folder / "Qq_rStUvWxY_0_9.mp4")
    examples, _ = converted("msvd_qa", raw, "test")
    assert [example.video for example in examples[:2]] == ["-8aBcDeFgHi_5_15.avi", "Qq_rStUvWxY_0_9.mp4"]


def test_the_same_clip_twice_is_an_error(raw: Path) -> None:
    (raw / "YouTubeClips" / "Qq_rStUvWxY_0_9.mp4").touch()
    with pytest.raises(UserError, match=r"Qq_rStUvWxY_0_9\.avi and Qq_rStUvWxY_0_9\.mp4 are the same clip"):
        converted("msvd_qa", raw, "test")


def test_without_clips_the_names_of_the_release_are_kept(tmp_path: Path) -> None:
    (tmp_path / "test_qa.json").write_text(json.dumps(QUESTIONS))
    (tmp_path / "youtube_mapping.txt").write_text(MAPPING)
    assert converted("msvd_qa", tmp_path, "test")[0][0].video == "-8aBcDeFgHi_5_15.avi"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"video_id": 3}, "video_id 3 is no video of the release"),
        ({"video_id": "vid1"}, "Expected `int`, got `str` - at `$.video_id`"),
        ({"answer": ""}, "at `$.answer`"),
        ({"question": None}, "Expected `str`, got `null` - at `$.question`"),
        ({"id": -1}, "Expected `int` >= 0 - at `$.id`"),
    ],
)
def test_broken_records_are_rejected_with_the_reason(raw: Path, change: dict[str, Any], reason: str) -> None:
    (raw / "test_qa.json").write_text(json.dumps([{**QUESTIONS[0], **change}, {**QUESTIONS[1], "id": 7}]))
    examples, rejected = converted("msvd_qa", raw, "test")
    assert examples == [BIRD]
    assert (rejected[0].file, rejected[0].record) == ("test_qa.json", "0")
    assert rejected[0].reason.endswith(reason)


@pytest.mark.parametrize("line", ["vid1", "-8aBcDeFgHi_5_15 1", "-8aBcDeFgHi_5_15 vidone"])
def test_a_mapping_that_does_not_read_is_an_error(raw: Path, line: str) -> None:
    (raw / "youtube_mapping.txt").write_text(f"Qq_rStUvWxY_0_9 vid2\n{line}\n")
    with pytest.raises(UserError, match=r"youtube_mapping\.txt: line 2 is"):
        converted("msvd_qa", raw, "test")


def test_a_mapping_that_is_no_text_is_an_error(raw: Path) -> None:
    (raw / "youtube_mapping.txt").write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(UserError, match=r"youtube_mapping\.txt: not a text file"):
        converted("msvd_qa", raw, "test")


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_authentic_excerpts_convert_whole(split: str) -> None:
    examples, rejected = converted("msvd_qa", sample("msvd_qa"), split)
    assert rejected == []
    assert len(examples) == 50


def test_authentic_records_by_hand() -> None:
    assert converted("msvd_qa", sample("msvd_qa"), "train")[0][2] == Example(
        id="msvd_qa/train/2",
        video="-4wsuPCjDBc_5_15.avi",
        question="what is eating a whole peanut?",
        answers=["squirrel"],
    )
    # video 1201 is this clip by a third party's table of the same split
    assert converted("msvd_qa", sample("msvd_qa"), "val")[0][0].video == "bQJQGoJF7_k_162_169.avi"


def test_authentic_clip_is_found_and_decodes(tmp_path: Path) -> None:
    excerpt = sample("msvd_qa")
    (tmp_path / "test_qa.json").symlink_to(excerpt / "qa_of_shipped_videos.json")
    for name in ("youtube_mapping.txt", "videos"):
        (tmp_path / name).symlink_to(excerpt / name)
    examples, rejected = converted("msvd_qa", tmp_path, "test")
    assert rejected == []
    assert {example.video for example in examples} == {"rlQ2kW-FvMk_66_79.mp4"}
    assert len(examples) == 26
    root = sources.module("msvd_qa").read(tmp_path, "test").media_root
    assert len(load_frames(root / "rlQ2kW-FvMk_66_79.mp4", 4)) == 4
