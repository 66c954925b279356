from __future__ import annotations

from pathlib import Path

from instructkit.data.examples import Example
from tests.sources import converted, write_json, write_picture

LISTED = [
    {"image": "VG_100K_2/1592325.jpg", "caption": " a clock on a pole"},
    {"image": "/export/share/datasets/vision/visual-genome/VG_100K/2407890.jpg", "caption": "trees with leaves"},
    {"image": "image/713420.jpg", "caption": "a man in a red shirt"},
    {"image": "image/713420.jpg", "caption": "the sky"},
]


def write(root: Path) -> None:
    """Captions of three images, under paths of several forms."""
    write_json(root / "vg_caption.json", LISTED)
    for number, path in enumerate(("VG_100K_2/1592325", "VG_100K/2407890", "VG_100K_2/713420")):
        write_picture(root / f"{path}.jpg", number)


def test_every_caption_is_an_example(tmp_path: Path) -> None:
    write(tmp_path)
    examples, rejected = converted("vg_caption", tmp_path, "train")
    assert rejected == []
    assert examples[0] == Example(
        id="vg_caption/train/0", images=["VG_100K_2/1592325.jpg"], references=["a clock on a pole"]
    )
    assert [example.images[0] for example in examples] == [
        "VG_100K_2/1592325.jpg",
        "VG_100K/2407890.jpg",
        "VG_100K_2/713420.jpg",
        "VG_100K_2/713420.jpg",
    ]
    assert examples[3].references == ["the sky"]


def test_what_does_not_fit_is_rejected(tmp_path: Path) -> None:
    bad = [{"image": "VG_100K/cat.png", "caption": "a cat"}, {"image": "VG_100K/1.jpg", "caption": " "}]
    write_json(tmp_path / "vg_caption.json", [*bad, {"caption": "a cat"}, LISTED[0]])
    examples, rejected = converted("vg_caption", tmp_path, "train")
    assert [reject.record for reject in rejected] == ["0", "1", "2"]
    assert "'VG_100K/cat.png' is not the path of an image of Visual Genome" in rejected[0].reason
    assert len(examples) == 1
