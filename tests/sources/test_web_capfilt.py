from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from instructkit import sources
from instructkit.data import readers
from instructkit.data.examples import Example
from instructkit.sources._shared.web_pairs import url_path
from tests.sources import converted, sample, write_json, write_picture

# Web CapFilt in miniature: the list of URLs with pictures as img2dataset leaves them (`write`), or of image paths.
CAPTIONS = ["a red kite above the sea ", "two mugs on a wooden table", "mountains behind a lake", "an old steam train"]


def write(root: Path) -> None:
    """Write the release as BLIP ships it, and the pictures downloaded."""
    pairs = [{"url": f"http://pictures.example/{n}.jpg", "caption": text} for n, text in enumerate(CAPTIONS)]
    write_json(root / "ccs_synthetic_filtered_large.json", pairs)
    for number in range(len(CAPTIONS)):
        write_picture(root / "images" / "00000" / f"{number:09}.jpg", number)


def write_paths(root: Path, name: str = "ccs_filtered.json") -> None:
    """Write the list that BLIP's training code reads."""
    pairs = [{"image": f"cc3m/{n}.jpg", "caption": text} for n, text in enumerate(CAPTIONS)]
    write_json(root / name, pairs)
    for number in range(len(CAPTIONS)):
        write_picture(root / "cc3m" / f"{number}.jpg", number)


def test_urls_lead_to_the_pictures_of_img2dataset(tmp_path: Path) -> None:
    write(tmp_path)
    examples, rejected = converted("web_capfilt", tmp_path, "train")
    assert rejected == []
    assert examples[0] == Example(
        id="web_capfilt/train/0", images=["00000/000000000.jpg"], references=["a red kite above the sea"]
    )
    assert len(examples) == 4
    reading = sources.module("web_capfilt").read(tmp_path, "train")
    assert reading.layout == "url, ccs_synthetic_filtered_large.json"
    assert reading.media_root == tmp_path / "images"


def test_picture_paths_are_those_of_the_downloaded_data() -> None:
    shown = json.loads(sample("web_capfilt/related/blip_laion_cc_sbu_558k.json").read_text())[0]["image"]
    assert url_path(4_539_375) == shown
    assert url_path(13_873_135) == "01387/013873135.jpg"


def test_paths_are_taken_as_they_are(tmp_path: Path) -> None:
    write_paths(tmp_path)
    examples, rejected = converted("web_capfilt", tmp_path, "train")
    assert rejected == []
    assert examples[3] == Example(id="web_capfilt/train/3", images=["cc3m/3.jpg"], references=["an old steam train"])
    assert sources.module("web_capfilt").read(tmp_path, "train").layout == "image, ccs_filtered.json"


def test_absolute_paths_start_from_the_root_of_the_file_system(tmp_path: Path) -> None:
    pairs = [{"image": f"/data/cc/{name}.jpg", "caption": "a cat"} for name in "ab"]
    pairs.append({"image": "c.jpg", "caption": "a cat"})
    (tmp_path / "laion_filtered.json").write_text(json.dumps(pairs))
    reading = sources.module("web_capfilt").read(tmp_path, "train")
    examples, rejected = converted("web_capfilt", tmp_path, "train")
    assert [(reading.media_root / example.images[0]).as_posix() for example in examples] == [
        "/data/cc/a.jpg",
        "/data/cc/b.jpg",
    ]
    assert [reject.record for reject in rejected] == ["2"]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"caption": "a cat"}, "neither image nor url"),
        ({"url": "http://a.example/1.jpg"}, "missing required field `caption`"),
        ({"url": "http://a.example/1.jpg", "caption": "  "}, "$.caption"),
        ({"url": "1.jpg", "caption": "a cat"}, "$.url"),
        ({"image": "", "caption": "a cat"}, "$.image"),
        ({"image": 5, "caption": "a cat"}, "$.image"),
    ],
)
def test_broken_pairs_are_rejected(tmp_path: Path, record: dict[str, Any], reason: str) -> None:
    path = tmp_path / "ccs_filtered.json"
    path.write_text(json.dumps([{"url": "https://a.example/0.jpg", "caption": "a dog"}, record]))
    examples, rejected = converted("web_capfilt", tmp_path, "train")
    assert [example.id for example in examples] == ["web_capfilt/train/0"]
    assert rejected[0].record == "1"
    assert reason in rejected[0].reason


def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "CHUNK", 64 << 10)
    peaks = []
    for count in (5_000, 50_000):
        pairs = [{"url": f"http://pictures.example/{n:09}.jpg", "caption": f"picture number {n}"} for n in range(count)]
        (tmp_path / "ccs_filtered.json").write_text(json.dumps(pairs))
        del pairs
        reading = sources.module("web_capfilt").read(tmp_path, "train")
        tracemalloc.start()
        converted_count = sum(len(reading.convert(record)) for record in reading.records)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert converted_count == count
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.parametrize("below", ["", "images"])
@pytest.mark.parametrize("there", [True, False])
def test_a_path_that_begins_with_images_is_not_doubled(tmp_path: Path, below: str, there: bool) -> None:
    (tmp_path / "ccs_filtered.json").write_text(json.dumps([{"image": "images/00000/1.jpg", "caption": "a dog"}]))
    picture = tmp_path / below / "images" / "00000" / "1.jpg"
    picture.parent.mkdir(parents=True)
    if there:
        picture.write_bytes(b"")
    root = sources.module("web_capfilt").read(tmp_path, "train").media_root
    assert root == (tmp_path / below if there else tmp_path)
