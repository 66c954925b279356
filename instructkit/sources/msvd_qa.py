"""MSVD-QA: questions made from the captions of 1,970 YouTube clips."""

from __future__ import annotations

from pathlib import Path

import msgspec

from instructkit.data.readers import json_list, require
from instructkit.errors import UserError
from instructkit.sources import Reading, Source, Split
from instructkit.sources._shared.videos import Question, converter, find_clips

_MAPPING = "youtube_mapping.txt"

SOURCE = Source(
    name="msvd_qa",
    title="MSVD-QA",
    task="video_qa",
    role="held-out",
    split="test",
    splits={
        "train": Split(("train_qa.json", _MAPPING), published=30_933),
        "val": Split(("val_qa.json", _MAPPING), published=6_415),
        "test": Split(("test_qa.json", _MAPPING), published=13_157),
    },
    images="YouTubeClips/{youtube id}_{start}_{end}.avi; any other video suffix that lies there",
    tree="""\
msvd_qa/
├── train_qa.json
├── val_qa.json
├── test_qa.json
├── youtube_mapping.txt               (lines such as "-4wsuPCjDBc_5_15 vid1")
└── YouTubeClips/-4wsuPCjDBc_5_15.avi ...    (or videos/)""",
    licence="none stated; the clips belong to those who put them on YouTube",
    home="https://github.com/xudejing/video-question-answering",
    record=Question,
    citation="Xu et al. 2017, doi:10.1145/3123266.3123427",
)

_decode = msgspec.json.Decoder(Question).decode


def read(raw: Path, split: str) -> Reading:
    """Read `{split}_qa.json`; `youtube_mapping.txt` says which clip a `video_id` is."""
    questions, mapping = require(raw, f"{split}_qa.json"), require(raw, _MAPPING)
    clips = find_clips(raw, "YouTubeClips", "videos", "video")
    names = {number: clips.name(stem, ".avi") for number, stem in _clip_names(mapping).items()}
    layout = f"{len(clips.names)} clips in {clips.folder.name}"
    convert = converter(SOURCE.name, split, _decode, names.get)
    return Reading(layout, [questions, mapping], json_list(questions), convert, clips.folder)


def _clip_names(mapping: Path) -> dict[int, str]:
    """Stems of the clips by number."""
    try:
        lines = mapping.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{mapping}: not a text file ({error}); fetch the file again") from error
    names = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        clip, _, video = line.strip().rpartition(" ")
        if not clip or not video.startswith("vid") or not video[3:].isdecimal():
            raise UserError(f"{mapping}: line {number} is {line!r}, not a clip and its number; fetch the file again")
        names[int(video[3:])] = clip
    return names
