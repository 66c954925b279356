"""What the video question sets share: where clips lie, and the JSON records of MSVD-QA and MSRVTT-QA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from instructkit.data.examples import Example
from instructkit.data.media import VIDEO_SUFFIXES
from instructkit.data.readers import RawRecord, Reject
from instructkit.errors import UserError
from instructkit.sources._shared.fields import Natural, Text


class Question(msgspec.Struct):
    """One entry of `{split}_qa.json`."""

    question: Text
    answer: Text
    id: Natural
    video_id: Natural


class Clips(NamedTuple):
    """The folder of a release's videos and what lies there: file names by their stem."""

    folder: Path
    names: dict[str, str]

    def name(self, stem: str, suffix: str) -> str:
        """The file name of a video: with the suffix that it has on disk, else with the release's own."""
        return self.names.get(stem, stem + suffix)


def find_clips(raw: Path, *folders: str) -> Clips:
    """List the videos in the first of the folders that exists below `raw`.

    Releases are passed on re-encoded, so the suffix is read off the folder. Without any of the folders nothing is
    listed and the first one is taken to be where the videos will lie.

    Raises:
        UserError: two files share a stem, so that it is open which one is meant.
    """
    folder = next((raw / name for name in folders if (raw / name).is_dir()), None)
    if folder is None:
        return Clips(raw / folders[0], {})
    names: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in VIDEO_SUFFIXES:
            if path.stem in names:
                raise UserError(f"{folder}: {names[path.stem]} and {path.name} are the same clip; keep one of them")
            names[path.stem] = path.name
    return Clips(folder, names)


def converter(
    source: str, split: str, decode: Callable[[bytes], Question], video: Callable[[int], str | None]
) -> Callable[[RawRecord], list[Example]]:
    """The conversion of MSVD-QA's and MSRVTT-QA's records.

    Args:
        source: name of the source.
        split: name of the split.
        decode: decoder of `Question` or of a struct made from it.
        video: file name of a video by its `video_id`; None if there is none of that id.
    """

    def convert(raw: RawRecord) -> list[Example]:
        record = decode(raw.data)
        name = video(record.video_id)
        if name is None:
            raise Reject(f"video_id {record.video_id} is no video of the release")
        return [
            Example(
                id=f"{source}/{split}/{record.id}",
                video=name,
                question=record.question.strip(),
                answers=[record.answer],
            )
        ]

    return convert
