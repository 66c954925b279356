"""What holds for every source; a new one is covered by being there, with `write` in its own test."""

from __future__ import annotations

import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from instructkit import sources
from instructkit.conversion.convert import convert
from instructkit.conversion.convert_all import needed_splits
from instructkit.data.dataset import SCHEMA, load_examples
from instructkit.data.examples import TASKS
from instructkit.data.readers import MissingFile
from instructkit.errors import UserError
from instructkit.prompts.templates import templates_folder
from tests.miniatures import write_release
from tests.sources import converted

HELD_IN = {
    "coco_caption",
    "web_capfilt",
    "textcaps",
    "vqav2",
    "okvqa",
    "aokvqa",
    "ocrvqa",
    "vqg_vqav2",
    "vqg_okvqa",
    "vqg_aokvqa",
    "llava_conversation",
    "llava_detail",
    "llava_reasoning",
}
HELD_OUT = {
    "nocaps",
    "flickr30k",
    "gqa",
    "vsr",
    "iconqa",
    "vizwiz",
    "scienceqa",
    "textvqa",
    "hatefulmemes",
    "visdial",
    "msvd_qa",
    "msrvtt_qa",
    "ivqa",
}
PAPER_SPLITS = {
    "coco_caption": "train",
    "nocaps": "val",
    "flickr30k": "test",
    "gqa": "testdev",
    "vizwiz": "test",
    "textvqa": "val",
    "scienceqa": "test",
    "visdial": "val",
    "msvd_qa": "test",
    "msrvtt_qa": "test",
    "ivqa": "test",
    "iconqa": "choose_txt_test",
    "okvqa": "train",
}
PUBLISHED = {
    ("coco_caption", "train"): 566_747,
    ("web_capfilt", "train"): 13_873_136,
    ("nocaps", "val"): 4_500,
    ("flickr30k", "test"): 1_000,
    ("textcaps", "train"): 109_765,
    ("gqa", "testdev"): 12_578,
    ("iconqa", "choose_txt_test"): 6_316,
    ("vqav2", "train"): 443_757,
    ("vizwiz", "test"): 8_000,
    ("okvqa", "train"): 9_009,
    ("okvqa", "val"): 5_046,
    ("aokvqa", "train"): 17_056,
    ("aokvqa", "val"): 1_145,
    ("aokvqa", "test"): 6_702,
    ("scienceqa", "test"): 2_017,
    ("textvqa", "val"): 5_000,
    ("msvd_qa", "test"): 13_157,
    ("msrvtt_qa", "test"): 72_821,
    ("vqg_vqav2", "train"): 443_757,
    ("vqg_okvqa", "train"): 9_009,
    ("vqg_aokvqa", "train"): 17_056,
}
NAMES = sources.names()
CONVERTED = [name for name in NAMES if sources.source(name).examples_of is None]
SPLITS = [(name, split) for name in CONVERTED for split in sources.source(name).splits]


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the miniature release of every source that has one."""
    root = tmp_path_factory.mktemp("releases")
    for name in CONVERTED:
        if sources.default_raw(name) is None:
            write_release(name, root / name)
    return root


@cache
def protocols() -> list[dict[str, Any]]:
    """All protocols as they stand in their files."""
    return [yaml.safe_load(path.read_text()) for path in (templates_folder() / "eval").glob("*.yaml")]


def release(name: str, releases: Path) -> Path:
    return sources.default_raw(name) or releases / name


def test_the_26_datasets_of_the_paper_are_there() -> None:
    roles = {source.name: source.role for source in sources.sources()}
    assert {name for name, role in roles.items() if role == "held-in"} == HELD_IN
    assert {name for name, role in roles.items() if role == "held-out"} == HELD_OUT
    assert len(HELD_IN) == len(HELD_OUT) == 13


def test_splits_and_counts_of_the_paper() -> None:
    assert {name: sources.source(name).split for name in PAPER_SPLITS} == PAPER_SPLITS
    found = {(name, split): sources.source(name).splits[split].published for name, split in PUBLISHED}
    assert found == PUBLISHED


def test_every_task_group_has_a_source() -> None:
    assert {source.task for source in sources.sources()} == set(TASKS)


@pytest.mark.parametrize("name", NAMES)
def test_facts_are_complete(name: str) -> None:
    source = sources.source(name)
    assert source.name == name
    assert source.task in TASKS
    assert source.split in source.splits
    assert all(split.files and all(split.files) for split in source.splits.values())
    assert all((source.title, source.images, source.tree, source.licence, source.citation))
    assert source.home.startswith("https://")
    assert issubclass(source.record, msgspec.Struct)
    assert source.record.__struct_fields__
    assert (sources.module(name).__doc__ or "").strip()


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(CONVERTED)))
def test_sources_without_a_reading_use_the_examples_of_one_that_has_it(name: str) -> None:
    source = sources.source(name)
    assert source.examples_of in CONVERTED
    assert source.split in sources.source(source.examples_of).splits
    assert not hasattr(sources.module(name), "read")


@pytest.mark.parametrize("name", CONVERTED)
def test_a_folder_without_the_release_is_an_error_that_names_a_file(name: str, tmp_path: Path) -> None:
    split = sources.source(name).split
    with pytest.raises(UserError) as error:
        converted(name, tmp_path, split)
    expected = re.findall(r"[\w.-]+\.\w+", " ".join(sources.source(name).splits[split].files))
    assert any(file in str(error.value) for file in expected)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_miniature_release_converts_whole(name: str, split: str, releases: Path, tmp_path: Path) -> None:
    raw = release(name, releases)
    limit = 200 if raw.parent != releases else None
    outcome = convert(name, raw, tmp_path, split=split, limit=limit)
    manifest = outcome.manifest
    assert (outcome.converted, manifest.rejected) == (True, 0)
    assert manifest.examples > 0
    assert (manifest.source, manifest.split, manifest.task) == (name, split, sources.source(name).task)
    assert manifest.layout
    assert manifest.files

    examples = load_examples(tmp_path / name / split)
    rows = list(examples)
    ids = [example.id for example in rows]
    assert len(set(ids)) == len(ids) == manifest.examples
    assert all(identity.startswith(f"{name}/{split}/") for identity in ids)
    for example in rows:
        assert example.images or example.video
        for image in example.images:
            with Image.open(examples.media_path(image)) as picture:
                picture.load()
        assert example.video is None or examples.media_path(example.video).is_file()

    # What was written is what the source made, field by field.
    made, _ = converted(name, raw, split)
    for row, example in zip(rows, made, strict=False):
        # Relevances are kept as 32-bit floats.
        assert row.relevance == pytest.approx(example.relevance, rel=1e-6)
        assert msgspec.structs.replace(row, relevance=example.relevance) == example
    for shard in manifest.shards:
        assert pq.read_schema(tmp_path / name / split / shard).equals(SCHEMA)

    again = convert(name, raw, tmp_path, split=split, limit=limit)
    assert (again.converted, again.manifest) == (False, manifest)


@pytest.mark.parametrize("name", [name for name in CONVERTED if sources.default_raw(name) is None])
@pytest.mark.parametrize("given", ["too high", "too low"])
def test_a_folder_one_too_high_or_too_low_gets_the_right_one_named(
    name: str, given: str, releases: Path, tmp_path: Path
) -> None:
    meant = tmp_path / "around" / "release"
    meant.parent.mkdir()
    shutil.copytree(releases / name, meant)
    (meant / "other").mkdir()
    raw = meant.parent if given == "too high" else meant / "other"
    with pytest.raises(MissingFile) as error:
        convert(name, raw, tmp_path / "out")
    assert f"did you mean --raw {meant}?" in str(error.value)
    assert f"`instructkit sources {name}`" in str(error.value)
    assert "NAME" not in str(error.value)


@pytest.mark.parametrize("name", CONVERTED)
def test_convert_all_takes_the_splits_that_benchmarks_read(name: str) -> None:
    source = sources.source(name)
    taken = needed_splits(source)
    assert taken[0] == source.split
    assert len(set(taken)) == len(taken)
    read = set()
    for protocol in protocols():
        if protocol["source"] == name:
            read |= {protocol["split"], *protocol.get("vocabulary", {}).get("splits", [])}
    assert set(taken) == {source.split} | read


@pytest.mark.parametrize(
    ("name", "split", "optional"),
    [
        *[("textvqa", split, f"TextVQA_Rosetta_OCR_v0.2_{split}.json") for split in ("train", "val", "test")],
        *[("textcaps", split, f"TextVQA_Rosetta_OCR_v0.2_{split}.json") for split in ("train", "val", "test")],
        ("visdial", "val", "visdial_1.0_val_dense_annotations.json"),
    ],
)
def test_an_optional_file_that_is_not_there_is_noted(
    name: str, split: str, optional: str, releases: Path, tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(releases / name, raw)
    whole = convert(name, raw, tmp_path / "out", split=split)
    assert whole.manifest.notes == []
    next(raw.rglob(optional)).unlink()
    outcome = convert(name, raw, tmp_path / "out", split=split)
    (note,) = outcome.manifest.notes
    assert optional in note
    assert "is not here" in note
    assert outcome.warnings == [note]
    assert convert(name, raw, tmp_path / "out", split=split).warnings == [note], "also when nothing has changed"
