from __future__ import annotations

from pathlib import Path

import pytest

from instructkit import sources
from instructkit.data.examples import Example
from instructkit.errors import UserError
from tests.sources import converted, sample, write_json, write_picture

# Flickr30K in miniature: Karpathy's file and the original one (`write`), or BLIP's lists (`write_lists`).
CAPTIONS = {
    "1000000001": ["Two hikers rest on a rock.", "Hikers sit high above a valley ."],
    "1000000002": ["A girl rides a horse.", "A horse carries a girl ."],
    "1000000003": ["A cook tastes the soup.", "The man in white holds a spoon ."],
    "1000000004": ["A crowd claps.", "People clap at a concert ."],
}
SPLITS = {"1000000001": "train", "1000000002": "val", "1000000003": "test", "1000000004": "test"}


def write(root: Path) -> None:
    """Write the release, its files directly in `root`."""
    images = []
    lines = []
    for place, (name, captions) in enumerate(CAPTIONS.items()):
        sentences = [
            {"tokens": text.lower().rstrip(" .").split(), "raw": text, "imgid": place, "sentid": place * 2 + n}
            for n, text in enumerate(captions)
        ]
        images.append(
            {
                "sentids": [sentence["sentid"] for sentence in sentences],
                "imgid": place,
                "sentences": sentences,
                "split": SPLITS[name],
                "filename": f"{name}.jpg",
            }
        )
        lines += [f"{name}.jpg#{n}\t{text}\n" for n, text in enumerate(captions)]
    write_json(root / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})
    (root / "results_20130124.token").write_text("".join(lines), encoding="utf-8")
    write_pictures(root)


def write_lists(root: Path) -> None:
    """Write the same as BLIP's lists."""
    for split in ("train", "val", "test"):
        entries = [
            {"image": f"flickr30k-images/{name}.jpg", "caption": captions}
            for name, captions in CAPTIONS.items()
            if SPLITS[name] == split
        ]
        write_json(root / f"flickr30k_{split}.json", entries)
    write_pictures(root)


def write_pictures(root: Path) -> None:
    for number, name in enumerate(CAPTIONS):
        write_picture(root / "flickr30k-images" / f"{name}.jpg", number)


SOUP = Example(
    id="flickr30k/test/1000000003",
    images=["1000000003.jpg"],
    references=["A cook tastes the soup.", "The man in white holds a spoon ."],
)


@pytest.mark.parametrize(("layout", "lay_out"), [("karpathy", write), ("karpathy lists", write_lists)])
def test_test_split_is_the_same_in_both_layouts(tmp_path: Path, layout: str, lay_out: object) -> None:
    assert callable(lay_out)
    lay_out(tmp_path)
    examples, rejected = converted("flickr30k", tmp_path, "test")
    assert rejected == []
    assert examples[0] == SOUP
    assert [example.id for example in examples] == ["flickr30k/test/1000000003", "flickr30k/test/1000000004"]
    reading = sources.module("flickr30k").read(tmp_path, "test")
    assert (reading.layout, reading.media_root) == (layout, tmp_path / "flickr30k-images")


def test_train_has_one_example_a_caption(tmp_path: Path) -> None:
    for name, lay_out, keys in [("a", write, ["0", "1"]), ("b", write_lists, ["0-0", "0-1"])]:
        lay_out(tmp_path / name)
        examples, rejected = converted("flickr30k", tmp_path / name, "train")
        assert rejected == []
        assert examples == [
            Example(id=f"flickr30k/train/{key}", images=["1000000001.jpg"], references=[text])
            for key, text in zip(keys, ["Two hikers rest on a rock.", "Hikers sit high above a valley ."], strict=True)
        ]


def test_the_original_file_is_the_split_all(tmp_path: Path) -> None:
    write(tmp_path)
    examples, rejected = converted("flickr30k", tmp_path, "all")
    assert rejected == []
    assert [example.id for example in examples] == [f"flickr30k/all/100000000{n}" for n in (1, 2, 3, 4)]
    assert (examples[2].images, examples[2].references) == (SOUP.images, SOUP.references)
    (tmp_path / "dataset_flickr30k.json").unlink()
    with pytest.raises(UserError, match=r"dataset_flickr30k\.json"):
        converted("flickr30k", tmp_path, "test")


def test_broken_lines_of_the_original_file_are_rejected_by_number(tmp_path: Path) -> None:
    content = (
        b"1.jpg#0\tA cat.\n1.jpg 1\tA small cat.\n1.jpg#2 A tabby\n\n2.jpg#0\tBlurr\xed\n3.jpg#0\t\n1.jpg#3\tThe cat\n"
    )
    (tmp_path / "results_20130124.token").write_bytes(content)
    examples, rejected = converted("flickr30k", tmp_path, "all")
    assert examples == [Example(id="flickr30k/all/1", images=["1.jpg"], references=["A cat.", "The cat"])]
    assert [reject.record for reject in rejected] == ["line 2", "line 3", "line 5", "line 6"]


def test_authentic_karpathy_record() -> None:
    examples, rejected = converted("flickr30k", sample("flickr30k/reconstructed"), "train")
    assert rejected == []
    assert [example.id for example in examples] == [f"flickr30k/train/{n}" for n in range(5)]
    assert examples[4].images == ["1000092795.jpg"]
    assert examples[4].references == ["Two friends enjoy time spent together."]


def test_authentic_lines() -> None:
    examples, rejected = converted("flickr30k", sample("flickr30k/reconstructed"), "all")
    assert rejected == []
    assert len(examples) == 50
    assert all(len(example.references) == 5 for example in examples)
    assert examples[1].images == ["10002456.jpg"]
    assert examples[1].references[2] == "Two men working on a machine wearing hard hats."


def test_authentic_sibling_release(tmp_path: Path) -> None:
    """Flickr8k is another part of Karpathy's release, in the same layout."""
    (tmp_path / "dataset_flickr30k.json").symlink_to(sample("flickr30k/related/dataset_flickr8k.json"))
    examples, rejected = converted("flickr30k", tmp_path, "train")
    assert rejected == []
    assert len(examples) == 30
    assert examples[0].references == ["A black dog is running after a white dog in the snow ."]
