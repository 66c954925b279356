"""Which records an id that comes again takes out: the same whatever a shard holds, checked against a plain loop."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from instructkit import sources
from instructkit.conversion import convert as conversion
from instructkit.conversion.convert import convert, convert_records
from instructkit.conversion.shards import Guard
from instructkit.data.dataset import load_examples

SOURCE = '''
import msgspec
from instructkit.data.examples import Example
from instructkit.data.readers import json_list, require
from instructkit.sources import Reading, Source, Split

class Record(msgspec.Struct):
    """Several questions."""
    ids: list[int]

SOURCE = Source(name="several", title="Several", task="vqa", role="extra", split="train",
    splits={"train": Split(("list.json",))}, images="", tree="", licence="MIT", home="", record=Record)

def convert(raw_record):
    ids = msgspec.json.decode(raw_record.data, type=Record).ids
    return [
        Example(id=f"several/train/{name}", images=["a.png"], question="q", answers=[raw_record.key]) for name in ids
    ]

def read(raw, split):
    path = require(raw, "list.json")
    return Reading("list", [path], json_list(path), convert, raw)
'''


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    (folder / "several.py").write_text(SOURCE)
    return folder


@pytest.fixture(autouse=True)
def _source(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(made)])


def release(folder: Path, records: list[list[int]]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "list.json").write_text(json.dumps([{"ids": ids} for ids in records]))
    return folder


def expected(records: list[list[int]]) -> tuple[list[tuple[str, list[str]]], list[tuple[str, str]]]:
    """Kept examples and rejected records, by a plain loop."""
    seen: set[int] = set()
    kept, rejected = [], []
    for number, ids in enumerate(records):
        if len(set(ids)) < len(ids):
            rejected.append((str(number), "two of its examples have the same id"))
        elif again := [name for name in ids if name in seen]:
            rejected.append((str(number), f"id 'several/train/{again[0]}' was there before"))
        else:
            seen.update(ids)
            kept += [(f"several/train/{name}", [str(number)]) for name in ids]
    return kept, rejected


def found(folder: Path) -> tuple[list[tuple[str, list[str]]], list[tuple[str, str]]]:
    lines = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
    assert {line["file"] for line in lines} <= {"list.json"}
    kept = [(example.id, example.answers) for example in load_examples(folder)]
    return kept, [(line["record"], line["reason"]) for line in lines]


@pytest.mark.parametrize("shard_records", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    "records",
    [
        [[1, 2, 3], [4], [5, 2, 6], [6]],  # 6 stays with the last: the record before it is out as a whole
        [[1, 2], [2, 3], [3, 4], [4, 5]],  # every second one
        [[1], [1], [1], [1]],
        [[1, 1], [1], []],
    ],
)
def test_a_record_is_kept_or_lost_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, records: list[list[int]], shard_records: int
) -> None:
    monkeypatch.setattr(conversion, "SHARD_RECORDS", shard_records)
    outcome = convert("several", release(tmp_path / "raw", records), tmp_path / "out")
    kept, rejected = expected(records)
    assert found(outcome.folder) == (kept, rejected)
    assert (outcome.manifest.examples, outcome.manifest.rejected) == (len(kept), len(rejected))


@pytest.mark.parametrize("seed", range(3))
def test_any_shard_size_gives_what_a_plain_loop_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = random.Random(seed)
    records = [[rng.randrange(150) for _ in range(rng.randrange(5))] for _ in range(60)]
    raw = release(tmp_path / "raw", records)
    for shard_records in (3, 13, 60):
        monkeypatch.setattr(conversion, "SHARD_RECORDS", shard_records)
        outcome = convert("several", raw, tmp_path / str(shard_records), jobs=2 if seed == 1 else 1)
        assert found(outcome.folder) == expected(records)
        sizes = {name: pq.read_metadata(outcome.folder / name).num_rows for name in outcome.manifest.shards}
        assert outcome.manifest.shards == sizes
    reading = sources.module("several").read(raw, "train")
    examples, rejected = convert_records(reading, list(reading.records), Guard("vqa"))
    kept = [(example.id, example.answers) for example in examples]
    assert (kept, [(reject.record, reject.reason) for reject in rejected]) == expected(records)


def test_the_ids_of_a_shard_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "SHARD_RECORDS", 50)
    raw = release(tmp_path / "raw", [[number % 150] for number in range(300)])
    read: list[str] = []
    table = pq.read_table

    def counted(path: Path, **options: Any) -> Any:
        if options.get("columns") == ["id"]:
            read.append(path.name)
        return table(path, **options)

    monkeypatch.setattr(conversion.pq, "read_table", counted)
    assert convert("several", raw, tmp_path / "out").manifest.examples == 150
    assert sorted(read) == [f"shard-0000{number}.parquet" for number in range(6)]
