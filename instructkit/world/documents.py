"""Documents of the text that the LLM reads, and how they are written."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

PICTURE = "Questions about one picture."
"""What a document begins with that asks several questions."""


class Document(msgspec.Struct):
    """One document.

    Attributes:
        text: what the LLM reads.
        told: ranges of its characters that the LLM learns to tell, see `training/text.py`; None for all.
        form: in which form it asks.
        facts: what it asks for.
        digests: of the scenes that it describes.
        asked: digest of the description with the question, see `text.digest_of`; empty where nothing is asked.
        words: in whose words it asks, a benchmark's or those of a training task; empty where nothing is asked, and of a
            sheet.
        stage: documents of a lower one are read before it.
    """

    text: str
    told: list[tuple[int, int]] | None
    form: str
    facts: list[str]
    digests: tuple[str, ...] = ()
    asked: str = ""
    words: str = ""
    stage: int = 0


def with_answers(before: str, lines: Sequence[tuple[str, str]]) -> tuple[str, list[tuple[int, int]]]:
    """A text that asks and answers, line by line, and the ranges of its answers."""
    text, told = before, []
    for asked, answer in lines:
        text = f"{text} {asked} {answer}"
        told.append((len(text) - len(answer) - 1, len(text)))
    return text, told
