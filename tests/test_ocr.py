from __future__ import annotations

from pathlib import Path

from instructkit.data.examples import Example
from instructkit.data.ocr import with_ocr


def read_words(path: Path) -> list[str]:
    return {"/covers/a.jpg": ["RIVERS", "AND"], "/covers/b.jpg": ["ROADS"]}[path.as_posix()]


def test_words_of_all_pictures_are_filled_in() -> None:
    example = Example(id="ocrvqa/train/1/0", images=["a.jpg", "b.jpg"], question="Title?", answers=["Rivers and Roads"])
    filled = with_ocr(example, Path("/covers"), read_words)
    assert filled.ocr_tokens == ["RIVERS", "AND", "ROADS"]
    assert (filled.id, filled.images, filled.answers) == (example.id, example.images, example.answers)
    assert example.ocr_tokens == []


def test_words_of_the_release_are_kept() -> None:
    example = Example(id="textvqa/val/1", images=["a.jpg"], ocr_tokens=["from the release"])
    assert with_ocr(example, Path("/covers"), read_words) is example
