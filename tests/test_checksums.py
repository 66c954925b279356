"""Files that lost or changed bytes are found, by conversion and wherever examples are opened."""

import hashlib
import json
import logging
import os
import time
from pathlib import Path

import msgspec
import pytest

from instructkit import files, sources
from instructkit.conversion import convert as conversion
from instructkit.conversion.convert import convert
from instructkit.data.dataset import load_examples
from instructkit.errors import UserError

TINY = Path(__file__).parent / "made_up_source"
RECORDS = 10
PER_SHARD = 4


@pytest.fixture(autouse=True)
def _tiny_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(TINY)])
    monkeypatch.setattr(conversion, "SHARD_RECORDS", PER_SHARD)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    records = [
        {"id": str(number), "image": f"{number}.png", "question": f"What is {number}?", "answers": ["a"]}
        for number in range(RECORDS)
    ]
    records[9]["id"] = "1"  # repeats: the last shard is written twice
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/list.json").write_text(json.dumps(records))
    return tmp_path / "raw"


@pytest.fixture
def folder(raw: Path, tmp_path: Path) -> Path:
    return convert("tiny", raw, tmp_path / "out").folder


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def age(folder: Path, seconds: float) -> None:
    """Give every file a time of the last write in the past."""
    for path in folder.iterdir():
        os.utime(path, (time.time() - seconds, time.time() - seconds))


def test_the_manifest_states_the_sha256_of_every_file_that_was_written(folder: Path) -> None:
    stated = json.loads((folder / "manifest.json").read_text())["checksums"]
    written = {name: content for name, content in tree(folder).items() if name != "manifest.json"}
    assert stated == {name: hashlib.sha256(content).hexdigest() for name, content in written.items()}
    assert list(stated) == [f"shard-0000{number}.parquet" for number in range(3)] + ["rejected.jsonl"]


def test_every_single_bit_flip_is_an_error_that_names_the_shard(folder: Path) -> None:
    for shard in sorted(folder.glob("shard-*")):
        bits = 8 * shard.stat().st_size
        for bit in range(5, bits, bits // 67):
            flip(shard, bit)
            with pytest.raises(UserError) as told:
                load_examples(folder)
            assert f"{shard}: damaged" in str(told.value)
            assert "convert the dataset again" in str(told.value)
            assert "\n" not in str(told.value)
            flip(shard, bit)
    assert len(load_examples(folder)) == RECORDS - 1


@pytest.mark.parametrize("left", [0, 1, 200, -1])
def test_a_shard_that_was_cut_is_an_error_and_made_again(folder: Path, raw: Path, left: int) -> None:
    whole = tree(folder)
    shard = folder / "shard-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:left])
    with pytest.raises(UserError, match=r"shard-00001\.parquet: damaged"):
        load_examples(folder)
    outcome = convert("tiny", raw, folder.parent.parent)
    assert outcome.converted
    assert outcome.warnings[-1:] == [
        f"{shard}: damaged, its SHA-256 is not that of what was written; all shards were made again"
    ]
    assert tree(folder) == whole
    assert len(load_examples(folder)) == RECORDS - 1


@pytest.mark.parametrize("name", ["shard-00000.parquet", "shard-00002.parquet", "rejected.jsonl"])
@pytest.mark.parametrize("lost", [True, False])
def test_whatever_is_missing_or_damaged_is_made_again(folder: Path, raw: Path, name: str, lost: bool) -> None:
    whole = tree(folder)
    if lost:
        (folder / name).unlink()
    else:
        flip(folder / name, 77)
    outcome = convert("tiny", raw, folder.parent.parent)
    assert outcome.converted
    assert f"{folder / name}: {'missing' if lost else 'damaged'}" in outcome.warnings[-1]
    assert tree(folder) == whole
    assert not convert("tiny", raw, folder.parent.parent).converted


def test_conversion_reads_every_byte_whatever_is_remembered(folder: Path, raw: Path) -> None:
    shard = folder / "shard-00001.parquet"
    age(folder, 100)
    before = shard.stat()
    flip(shard, 4321)
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert convert("tiny", raw, folder.parent.parent).converted


@pytest.mark.parametrize("seconds", [0.0, 100.0])
def test_a_file_is_read_once_unless_it_was_written_just_now(
    folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    stamp = files._stamp
    age(folder, seconds)
    if seconds:  # the time of the last change cannot be set
        monkeypatch.setattr(files, "_stamp", lambda path: (*stamp(path)[:2], stamp(path)[1], stamp(path)[3]))
    read: list[str] = []
    monkeypatch.setattr(
        files, "sha256_of", lambda path: read.append(path.name) or hashlib.sha256(path.read_bytes()).hexdigest()
    )
    load_examples(folder)
    assert len(read) == 3
    load_examples(folder)
    assert len(read) == (3 if seconds else 6)
    flip(folder / "shard-00002.parquet", 99)
    with pytest.raises(UserError, match=r"shard-00002\.parquet: damaged"):
        load_examples(folder)


def test_a_cache_folder_that_cannot_be_written_is_told_and_every_file_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(files, "_SETTLED_SECONDS", -1)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert len(load_examples(folder)) == RECORDS - 1
    assert "cannot be written (Not a directory)" in caplog.text


def test_a_manifest_without_checksums_is_told_and_converted_again(
    folder: Path, raw: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = tree(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["checksums"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with caplog.at_level(logging.WARNING):
        assert len(load_examples(folder)) == RECORDS - 1
    assert len(caplog.messages) == 1
    assert "states no checksum of 3 shards" in caplog.text
    (folder / "shard-00000.parquet").write_bytes(b"")
    with pytest.raises(UserError, match="the shards cannot be read"):
        load_examples(folder)
    assert convert("tiny", raw, folder.parent.parent).converted
    assert tree(folder) == whole


def test_a_manifest_that_counts_other_rows_is_an_error(folder: Path, raw: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["examples"] = 3
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"the shards hold 9 examples, manifest\.json says 3"):
        load_examples(folder)


def test_a_damaged_shard_of_a_stopped_conversion_is_made_again(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tree(convert("tiny", raw, tmp_path / "whole").folder)
    finish = conversion._join_rejects
    for damaged in range(3):
        with monkeypatch.context() as stopped:
            # Stopped when the last shard has lost its repeats already.
            stopped.setattr(conversion, "_join_rejects", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                convert("tiny", raw, tmp_path / f"out{damaged}")
        folder = tmp_path / f"out{damaged}/tiny/train"
        assert (folder / ".partial/shard-00002.thinned").exists()
        flip(folder / f"shard-0000{damaged}.parquet", 1234)
        monkeypatch.setattr(conversion, "_join_rejects", finish)
        made: list[int] = []
        make = conversion.make_shard
        with monkeypatch.context() as watched:
            watched.setattr(
                conversion,
                "make_shard",
                lambda *words, made=made, make=make: made.append(words[-1].number) or make(*words),
            )
            convert("tiny", raw, tmp_path / f"out{damaged}")
        assert made == [damaged], "the others are kept"
        assert tree(folder) == whole


def test_what_is_remembered_is_bound_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_SETTLED_SECONDS", -10)
    path = tmp_path / "a"
    path.write_bytes(b"one")
    stated = {"a": hashlib.sha256(b"one").hexdigest()}
    assert files.damage(tmp_path, stated) == []
    (memory,) = (tmp_path / "cache/instructkit/checksums").iterdir()
    assert msgspec.json.decode(memory.read_bytes())["a"][1] == stated["a"]
    (tmp_path / "b").write_bytes(b"two")
    before = path.stat()
    os.utime(tmp_path / "b", ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(tmp_path / "b", path)  # same size and time, another inode
    assert files.damage(tmp_path, stated) == [f"{path}: damaged, its SHA-256 is not that of what was written"]
    memory.write_bytes(b"no JSON")
    path.write_bytes(b"one")
    assert files.damage(tmp_path, stated) == []
