from __future__ import annotations

from pathlib import Path

from instructkit import sources
from instructkit.data.examples import Example
from tests.sources import converted, write_json, write_picture

CAPTIONS = [" a dog in the grass", "two boats", "the old town"]


def write(root: Path) -> None:
    """The list of downloaded pictures, as LAVIS's training code reads it."""
    write_json(root / "cc3m.json", [{"image": f"cc3m/{n}.jpg", "caption": text} for n, text in enumerate(CAPTIONS)])
    for number in range(len(CAPTIONS)):
        write_picture(root / "cc3m" / f"{number}.jpg", number)


def test_pairs_by_path_and_by_url(tmp_path: Path) -> None:
    write(tmp_path / "paths")
    examples, rejected = converted("cc3m", tmp_path / "paths", "train")
    assert rejected == []
    assert examples[0] == Example(id="cc3m/train/0", images=["cc3m/0.jpg"], references=["a dog in the grass"])
    pairs = [{"url": f"http://pictures.example/{n}.jpg", "caption": text} for n, text in enumerate(CAPTIONS)]
    write_json(tmp_path / "urls" / "cc3m.json", [*pairs, {"url": "", "caption": "a cat"}])
    write_picture(tmp_path / "urls" / "images" / "00000" / "000000002.jpg")
    examples, rejected = converted("cc3m", tmp_path / "urls", "train")
    assert [reject.record for reject in rejected] == ["3"]
    assert (examples[2].images, examples[2].references) == (["00000/000000002.jpg"], ["the old town"])
    reading = sources.module("cc3m").read(tmp_path / "urls", "train")
    assert (reading.layout, reading.media_root) == ("url, cc3m.json", tmp_path / "urls" / "images")
