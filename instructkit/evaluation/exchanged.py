"""Every question beside a picture that is not its own: what a model still gets right, it gets right blind."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from msgspec.structs import replace

from instructkit.data.examples import Example
from instructkit.errors import UserError


class Shown(NamedTuple):
    """What an example shows.

    Attributes:
        images: paths of the pictures.
        video: path of the video instead of images.
        start: first second of a clip.
        end: last second of a clip.
    """

    images: tuple[str, ...]
    video: str | None
    start: float | None
    end: float | None


def shown_by(example: Example) -> Shown:
    """What an example shows."""
    return Shown(tuple(example.images), example.video, example.start, example.end)


class Exchange:
    """For each picture, or video, of a benchmark another one of the same benchmark.

    All questions about a picture are asked about the same other one, and every picture is shown in the place of one.
    Which it is follows from the name of the benchmark and the pictures.

    Args:
        benchmark: its name.
        examples: what is asked.

    Raises:
        UserError: all examples show the same.
    """

    def __init__(self, benchmark: str, examples: Sequence[Example]) -> None:
        pictures = list(dict.fromkeys(map(shown_by, examples)))
        if len(pictures) < 2:
            raise UserError(f"{benchmark}: shows one picture alone, so that there is no other to exchange it for")
        Random(f"exchanged/{benchmark}").shuffle(pictures)
        self._others = dict(zip(pictures, [*pictures[1:], pictures[0]], strict=True))

    def __call__(self, example: Example) -> Example:
        """The example beside the other picture."""
        other = self._others[shown_by(example)]
        return replace(example, images=list(other.images), video=other.video, start=other.start, end=other.end)
