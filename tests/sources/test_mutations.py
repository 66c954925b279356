"""Records and files with something wrong in them, for every source: a reject with a reason, a `UserError`, or examples
that hold together; never another exception, never an example that is wrong.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instructkit import sources
from instructkit.conversion.convert import convert_records, guard_of
from instructkit.data.examples import Example
from instructkit.data.readers import RawRecord
from instructkit.errors import UserError
from instructkit.sources import Reading
from tests.miniatures import write_release

NAMES = [source.name for source in sources.sources() if source.examples_of is None and source.name != "easy_vqa"]

REPLACEMENTS: list[Any] = [
    None, True, -1, 0, 7, 99, 2**31, 10**30, 0.5, math.nan, math.inf, "", " \n", "\x00", "x", "7", "../../etc/passwd",
    "/etc/passwd", "yes", [], {}, [[]], [None], [""], {"": None}, ["x"] * 3,
]  # fmt: skip
DROP = object()
TWICE = object()


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values inside a JSON value, its own first."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy in which the value at a path is replaced, dropped or there twice."""
    if not path:
        return value if new in (DROP, TWICE) else new
    key, rest = path[0], path[1:]
    if isinstance(value, dict):
        return {
            name: inner if name != key else changed(inner, rest, new)
            for name, inner in value.items()
            if not (name == key and not rest and new is DROP)
        }
    if rest:
        return [*value[:key], changed(value[key], rest, new), *value[key + 1 :]]
    middle = {DROP: [], TWICE: [value[key]] * 2}.get(new if new in (DROP, TWICE) else None, [new])
    return [*value[:key], *middle, *value[key + 1 :]]


@st.composite
def mutations(draw: st.DrawFn, value: Any) -> Any:
    """The value with one or two things in it changed."""
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(list(places(value))))
        kinds = st.sampled_from([DROP, TWICE, *REPLACEMENTS])
        value = changed(value, path, draw(kinds if path else st.sampled_from(REPLACEMENTS)))
    return value


@cache
def release(name: str) -> Path:
    """The miniature release of a source, written once; its pictures are never opened."""
    return write_release(name, Path(mkdtemp(prefix=f"{name}-")), media=False)


@cache
def reading(name: str, split: str) -> tuple[Reading, list[RawRecord]]:
    """The reading of a miniature split and its records."""
    found: Reading = sources.module(name).read(release(name), split)
    return found, list(found.records)


def assert_holds_together(example: Example, name: str, split: str) -> None:
    """What every example must keep to, said without the code under test."""
    source = sources.source(name)
    assert example.id.startswith(f"{name}/{split}/")
    assert example.id.removeprefix(f"{name}/{split}/").strip()
    assert example.images or example.video
    for path in [*example.images, *([example.video] if example.video is not None else [])]:
        assert path.strip()
        assert not Path(path).is_absolute()
        assert ".." not in Path(path).parts
    assert not example.choices or any(map(str.strip, example.choices))
    assert example.choice is None or example.choices[example.choice].strip()
    for texts in (example.references, example.ocr_tokens, example.rationales):
        assert all(isinstance(text, str) and text.strip() for text in texts)
    for line in (example.question, example.statement, example.context, example.lecture):
        assert line is None or line.strip()
    assert not example.answers or any(answer.strip() for answer in example.answers)
    assert example.choice is None or example.choice in range(len(example.choices))
    assert not example.relevance or len(example.relevance) == len(example.choices)
    assert all(0 <= value <= 1 for value in example.relevance)
    assert all(value is None or math.isfinite(value) for value in (example.start, example.end))
    assert all(turn.question.strip() and turn.answer.strip() for turn in example.history)
    if not source.splits[split].hidden:
        assert example.answers or example.references or example.choice is not None


def test_every_source_has_a_miniature_release() -> None:
    for name in NAMES:
        assert any(release(name).iterdir())
        assert reading(name, sources.source(name).split)[1]


def tried(times: int) -> settings:
    return settings(max_examples=times, derandomize=True, suppress_health_check=list(HealthCheck))


def often(quick: int, full: int) -> Any:
    """The name of each source and how often it is tried; the quick suite tries less often."""
    counts = [pytest.param(quick, id="quick"), pytest.param(full, id="full", marks=pytest.mark.full)]
    names = pytest.mark.parametrize("name", NAMES)
    return lambda test: names(pytest.mark.parametrize("times", counts)(test))


@often(12, 60)
def test_a_mutated_record_is_a_reject_or_holds_together(name: str, times: int) -> None:
    tried(times)(given(data=st.data())(mutated_record))(name=name)


def mutated_record(name: str, data: st.DataObject) -> None:
    split = data.draw(st.sampled_from(sorted(sources.source(name).splits)))
    found, records = reading(name, split)
    chosen = data.draw(st.integers(0, len(records) - 1))
    content = json.dumps(data.draw(mutations(json.loads(records[chosen].data)))).encode()
    mutated = [*records[:chosen], records[chosen]._replace(data=content), *records[chosen + 1 :]]
    examples, rejected = convert_records(found, mutated, guard_of(name, split))
    for example in examples:
        assert_holds_together(example, name, split)
    assert len({example.id for example in examples}) == len(examples)
    assert all(reject.reason.strip() and reject.file and reject.record for reject in rejected)
    assert len(rejected) <= 2


@pytest.mark.parametrize("name", NAMES)
def test_a_record_that_comes_twice_is_rejected_the_second_time(name: str) -> None:
    split = sources.source(name).split
    found, records = reading(name, split)
    once, none_rejected = convert_records(found, records, guard_of(name, split))
    twice, rejected = convert_records(found, [*records, *records], guard_of(name, split))
    assert not none_rejected
    assert twice == once
    with_examples = [record for record in records if found.convert(record)]
    assert len(rejected) == len(with_examples)


@often(8, 25)
def test_a_mutated_file_is_a_clear_error_or_its_examples_hold_together(name: str, times: int) -> None:
    tried(times)(given(data=st.data())(mutated_file))(name=name)


def mutated_file(name: str, data: st.DataObject) -> None:
    split = data.draw(st.sampled_from(sorted(sources.source(name).splits)))
    files = [path for path in reading(name, split)[0].files if path.is_file()]
    path = data.draw(st.sampled_from(files))
    whole, told = path.read_bytes(), None
    try:
        path.write_bytes(data.draw(broken_files(path, whole)))
        found = sources.module(name).read(release(name), split)
        examples, rejected = convert_records(found, list(found.records), guard_of(name, split))
    except UserError as error:
        told, examples, rejected = str(error), [], []
    finally:
        path.write_bytes(whole)
    if told is not None:
        assert str(release(name)) in told
        assert "\n" not in told
    for example in examples:
        assert_holds_together(example, name, split)
    assert all(reject.reason.strip() for reject in rejected)


@often(15, 60)
def test_bytes_that_are_no_utf8_are_a_reject_or_a_clear_error(name: str, times: int) -> None:
    split = sources.source(name).split
    for path in [path for path in reading(name, split)[0].files if path.is_file()]:
        whole = path.read_bytes()
        quotes = [place for place, byte in enumerate(whole) if byte == ord('"')]
        try:
            for place in quotes[:: max(1, len(quotes) // times)]:
                path.write_bytes(whole[: place + 1] + b"\xff" + whole[place + 1 :])
                told = str(release(name))
                try:
                    found = sources.module(name).read(release(name), split)
                    examples, rejected = convert_records(found, list(found.records), guard_of(name, split))
                except UserError as error:
                    told, examples, rejected = str(error), [], []
                assert str(release(name)) in told
                assert all(reject.reason.strip() for reject in rejected)
                for example in examples:
                    assert_holds_together(example, name, split)
        finally:
            path.write_bytes(whole)


@st.composite
def broken_files(draw: st.DrawFn, path: Path, whole: bytes) -> bytes:
    """A file cut off, with a line gone or twice, with bytes that are no UTF-8, or with a JSON value changed."""
    if path.suffix == ".json" and draw(st.integers(0, 3)):
        return json.dumps(draw(mutations(json.loads(whole)))).encode()
    lines = whole.splitlines(keepends=True)
    index = draw(st.integers(0, len(lines) - 1))
    if path.suffix == ".jsonl" and draw(st.integers(0, 3)):
        return b"".join([*lines[:index], json.dumps(draw(mutations(json.loads(lines[index])))).encode(), b"\n"])
    kinds = {
        "cut": whole[: draw(st.integers(0, len(whole) - 1))],
        "line gone": b"".join([*lines[:index], *lines[index + 1 :]]),
        "line twice": b"".join([*lines[: index + 1], *lines[index:]]),
        "no UTF-8": whole[:index] + b"\xff\xfe" + whole[index:],
        "empty": b"",
    }
    return kinds[draw(st.sampled_from(sorted(kinds)))]
