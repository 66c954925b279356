import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instructkit.data import readers
from instructkit.data.readers import RawRecord, csv_rows, json_lines, json_list, json_member, json_object, read_json
from instructkit.errors import UserError

# Texts full of what a cutter could take for structure.
TEXTS = st.text(st.sampled_from('{}[],:"\\ \n\tné1'), max_size=12) | st.text(max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
RECORDS = st.dictionaries(st.sampled_from(["id", "a"]) | TEXTS, VALUES, max_size=4) | st.lists(VALUES, max_size=4)
FORMATS = st.sampled_from([{}, {"indent": 2}, {"indent": "\t"}, {"separators": (",", ":")}, {"ensure_ascii": False}])


def values(stream: Iterator[RawRecord]) -> list[Any]:
    return [json.loads(record.data) for record in stream]


def keys(stream: Iterator[RawRecord]) -> list[str]:
    return [record.key for record in stream]


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(RECORDS, max_size=30), style=FORMATS, chunk=st.integers(4, 64), mark=st.booleans())
def test_json_list_reads_what_json_reads_whatever_the_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, records: list[Any], style: dict[str, Any], chunk: int, mark: bool
) -> None:
    monkeypatch.setattr(readers, "CHUNK", chunk)
    path = tmp_path / "list.json"
    path.write_bytes(b"\xef\xbb\xbf" * mark + json.dumps(records, **style).encode() + b"\n" * mark)
    streamed = list(json_list(path))
    assert [json.loads(record.data) for record in streamed] == records
    assert [record.key for record in streamed] == [str(index) for index in range(len(records))]


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(RECORDS, min_size=1, max_size=12), chunk=st.integers(1, 64), data=st.data())
def test_json_list_never_takes_a_truncated_file_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, records: list[Any], chunk: int, data: st.DataObject
) -> None:
    monkeypatch.setattr(readers, "CHUNK", chunk)
    content = json.dumps(records).encode()
    path = tmp_path / "list.json"
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    read: list[object] = []
    with pytest.raises(UserError, match=r"list\.json"):
        read.extend(json.loads(record.data) for record in json_list(path))
    assert read == records[: len(read)]


def test_json_list_of_several_chunks_with_nested_lists_of_like_objects(tmp_path: Path) -> None:
    # An answer begins with the key that a record begins with, so the quick guess is always wrong.
    records = [{"id": index, "answers": [{"id": n, "text": "x" * 900} for n in range(10)]} for index in range(1500)]
    path = tmp_path / "list.json"
    path.write_text(json.dumps(records))
    assert path.stat().st_size > 3 * readers.CHUNK
    assert values(json_list(path)) == records


def test_json_list_with_one_record_of_many_chunks(tmp_path: Path) -> None:
    records = [{"id": 1}, {"id": 2, "text": "}, {" * (2 << 20)}, {"id": 3}]
    path = tmp_path / "list.json"
    path.write_text(json.dumps(records))
    assert values(json_list(path)) == records


def test_json_list_holds_a_few_chunks_only(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "list.json"
    with path.open("w") as file:
        file.write("[")
        for index in range(200_000):
            file.write(json.dumps({"image": f"{index:09}.jpg", "caption": "a caption " * 12}) + ", ")
        file.write('{"image": "last"}]')
    assert path.stat().st_size > 30 * readers.CHUNK
    tracemalloc.start()
    count = sum(1 for _ in json_list(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 200_001
    assert peak < 12 * readers.CHUNK


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "does not begin with a JSON list"),
        ('{"a": 1}', "does not begin with a JSON list"),
        ("[{}, {}", "breaks off or is no JSON behind 1 records"),
        ('[{"a": 1}, {"a": tru}, {"a": 3}]', "behind 1 records"),
        ('[{"a": 1}, {"a": 2}, {"a": NaN}]', "behind 2 records"),
        ("[{}, {}] trailing", "trailing characters"),
        ('[{"a": 1},]', "trailing comma"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_json_list_says_which_file_and_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str, chunk: int
) -> None:
    monkeypatch.setattr(readers, "CHUNK", chunk)
    path = tmp_path / "list.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"list\.json: .*JSON") as caught:
        list(json_list(path))
    if chunk > 100:
        assert message in str(caught.value)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(RECORDS, max_size=8), other=VALUES, mark=st.booleans())
def test_json_member_reads_the_list_under_a_key(tmp_path: Path, records: list[Any], other: Any, mark: bool) -> None:
    path = tmp_path / "object.json"
    content = {"info": other, "images": [{"items": other}], "items": records, "license": other}
    path.write_bytes(b"\xef\xbb\xbf" * mark + json.dumps(content).encode())
    assert values(json_member(path, "items")) == records
    assert keys(json_member(path, "items")) == [f"items[{index}]" for index in range(len(records))]


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries=st.dictionaries(TEXTS, VALUES, max_size=8))
def test_json_object_reads_its_entries(tmp_path: Path, entries: dict[str, Any]) -> None:
    path = tmp_path / "object.json"
    path.write_text(json.dumps(entries))
    assert {record.key: json.loads(record.data) for record in json_object(path)} == entries


def test_streams_can_be_left_early(tmp_path: Path) -> None:
    path = tmp_path / "object.json"
    path.write_text('{"items": [{"a": 1}, {"a": 2}], "more": {}}')
    assert next(json_member(path, "items")).data == b'{"a": 1}'
    assert next(json_object(path)).key == "items"


@pytest.mark.parametrize(
    "read",
    [
        json_list,
        json_object,
        lambda path: json_member(path, "items"),
        lambda path: iter([read_json(path, dict[str, int])]),
    ],
)
@pytest.mark.parametrize("content", [None, "", "nothing", "[" * 5000, '{"items": ', '"items"', "\xff"])
def test_broken_files_are_errors_that_name_them(
    tmp_path: Path, read: Callable[[Path], Iterator[Any]], content: str | None
) -> None:
    path = tmp_path / "broken.json"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"broken\.json"):
        list(read(path))


@pytest.mark.parametrize("content", [b'{"a\xff": {}}', b'{"a": {}, "\xc3": 1}', b'{"\xff": [], "items": [{}]}'])
def test_a_key_that_is_no_utf8_is_an_error_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.json: .*'utf-8' codec can't decode byte"):
        list(json_object(path))
    with pytest.raises(UserError, match=r"broken\.json: .*'utf-8' codec can't decode byte"):
        read_json(path, dict[str, Any])


def test_json_lines_numbers_lines_and_skips_blank_ones(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n{"a": 2}\r\n  \nnot json\n{"a": 3}')
    records = list(json_lines(path))
    assert [record.key for record in records] == ["line 1", "line 3", "line 5", "line 6"]
    assert json.loads(records[0].data) == {"a": 1}
    assert records[2].data == b"not json\n"


def test_csv_rows_become_objects_of_strings(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes('\ufeffid,question\r\n1,"who, and\nwhere ""é"""\r\n2\r\n3,what,4,5\r\n'.encode())
    records = list(csv_rows(path))
    assert [record.key for record in records] == ["row 1", "row 2", "row 3"]
    assert [msgspec.json.decode(record.data) for record in records] == [
        {"id": "1", "question": 'who, and\nwhere "é"'},
        {"id": "2"},
        {"id": "3", "question": "what", "surplus cells": "4,5"},
    ]


def test_csv_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"id,question\n1,\xe9\n")
    with pytest.raises(UserError, match=r"rows\.csv: no CSV in UTF-8"):
        list(csv_rows(path))
    with pytest.raises(UserError, match=r"none\.csv"):
        list(csv_rows(tmp_path / "none.csv"))
