from __future__ import annotations

import sys
from pathlib import Path

import pytest

from instructkit.conversion.convert import convert
from instructkit.data.dataset import load_examples
from instructkit.data.examples import Example
from instructkit.data.ocr import with_ocr
from instructkit.errors import UserError
from tests.miniatures import write_release

READER = """
def read(path):
    if path.stem == FAILS:
        raise OSError("cannot see")
    return [path.stem, " ", "WORDS"]

def number(path):
    return 7

FAILS = ""
"""


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


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A release of TextVQA without OCR tokens, and a module of the user's in the working directory."""
    write_release("textvqa", tmp_path / "raw")
    (tmp_path / "raw" / "TextVQA_Rosetta_OCR_v0.2_val.json").unlink()
    (tmp_path / "my_ocr.py").write_text(READER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_ocr", raising=False)
    return tmp_path / "raw"


@pytest.mark.parametrize("jobs", [1, 2])
def test_words_are_read_in_a_conversion(release: Path, tmp_path: Path, jobs: int) -> None:
    made = convert("textvqa", release, tmp_path / "out", split="val", jobs=jobs, ocr="my_ocr:read")
    examples = load_examples(made.folder)
    assert len(examples)
    assert all(each.ocr_tokens == [Path(each.images[0]).stem, "WORDS"] for each in examples)
    assert any("read by my_ocr:read" in note for note in made.manifest.notes)
    assert not convert("textvqa", release, tmp_path / "out", split="val", ocr="my_ocr:read").converted
    Path("my_ocr.py").write_text(READER.replace('"WORDS"', '"OTHERS"'))
    again = convert("textvqa", release, tmp_path / "out", split="val", ocr="my_ocr:read")
    assert again.converted, "the reader was edited"
    assert convert("textvqa", release, tmp_path / "out", split="val").converted, "no words are asked for any more"
    assert load_examples(made.folder)[0].ocr_tokens == []


def test_a_picture_that_cannot_be_read_rejects_its_records(release: Path, tmp_path: Path) -> None:
    made = convert("textvqa", release, tmp_path / "out", split="val", ocr="my_ocr:read")
    first = load_examples(made.folder)[0].images[0]
    Path("my_ocr.py").write_text(READER.replace('FAILS = ""', f'FAILS = "{Path(first).stem}"'))
    del sys.modules["my_ocr"]
    made = convert("textvqa", release, tmp_path / "out", split="val", ocr="my_ocr:read")
    assert made.manifest.rejected > 0
    assert all(first not in example.images for example in load_examples(made.folder))
    rejected = (made.folder / "rejected.jsonl").read_text()
    assert f"{first}: my_ocr:read cannot read it (OSError: cannot see)" in rejected
    made = convert("textvqa", release, tmp_path / "out", split="val", ocr="my_ocr:number")
    assert made.manifest.examples == 0
    assert "gave a int, not a list of words" in (made.folder / "rejected.jsonl").read_text()


@pytest.mark.parametrize(
    ("source", "ocr", "message"),
    [
        ("textvqa", "my_ocr", "is package:function"),
        ("textvqa", "no_such_module:read", "no_such_module cannot be imported"),
        ("textvqa", "my_ocr:write", "my_ocr has no function write"),
        ("textvqa", "my_ocr:FAILS", "my_ocr has no function FAILS"),
        ("vqav2", "my_ocr:read", r"no prompt of vqav2 \(vqa\) reads words"),
    ],
)
def test_a_reader_that_cannot_be_used_is_told(
    release: Path, tmp_path: Path, source: str, ocr: str, message: str
) -> None:
    raw = release if source == "textvqa" else write_release(source, tmp_path / source)
    with pytest.raises(UserError, match=message) as caught:
        convert(source, raw, tmp_path / "out", split="val", ocr=ocr)
    assert "\n" not in str(caught.value)
