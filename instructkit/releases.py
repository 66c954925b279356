"""Streams of raw records out of release files: JSON lists, JSON objects, JSON lines and CSV, flat in memory.

Every stream yields `RawRecord`s, whose bytes are decoded later (in a worker, if there are several) with the source's
`msgspec.Struct`, so that one bad record is one reject and never the end of a file.
"""

from __future__ import annotations

import csv
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from instructkit.errors import UserError

CHUNK = 4 << 20
T = TypeVar("T")

_BETWEEN_RECORDS = re.compile(rb"[}\]]\s*,\s*(?=[{\[])")
_FIRST_KEY = re.compile(rb'\s*(\{\s*"[^"]*"|\[)')
_raw_list = msgspec.json.Decoder(list[msgspec.Raw])
_raw_dict = msgspec.json.Decoder(dict[str, msgspec.Raw])


class RawRecord(NamedTuple):
    """One undecoded record: the file it is in, where (index or key) and its JSON bytes."""

    file: str
    key: str
    data: bytes


class Reject(Exception):
    """This record cannot become an example; the message is the reason and goes to `rejected.jsonl`."""


def require(root: Path, *alternatives: str) -> Path:
    """The first of the alternative files that exists below `root`.

    Raises:
        UserError: none does; the message names the folder and all that was looked for.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    for name in alternatives:
        if (root / name).exists():
            return root / name
    raise UserError(f"{root}: none of {', '.join(alternatives)} is here; see `instructkit sources NAME` for the layout")


def read_json(path: Path, kind: type[T]) -> T:
    """Decode one whole file with a type; for files that are small or whose parts are needed at random.

    Raises:
        UserError: the file is not JSON or does not have that type.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except msgspec.DecodeError as error:
        raise UserError(f"{path}: {error}") from error


def json_list(path: Path) -> Iterator[RawRecord]:
    """The objects of a file that is one JSON list, in order, at the memory of a few chunks whatever the file's size.

    Chunks are cut between `}` and `{`; a cut that falls inside a nested list or a string does not decode, and the one
    before it is tried.

    Raises:
        UserError: the file is not a JSON list of objects, or it ends or breaks inside it.
    """
    index = 0
    with path.open("rb") as file:
        buffer = file.read(CHUNK).removeprefix(b"\xef\xbb\xbf").lstrip()
        if buffer[:1] != b"[":
            raise UserError(f"{path}: does not begin with a JSON list; is it the right file?")
        buffer = buffer[1:]
        head = _FIRST_KEY.match(buffer)
        while block := file.read(CHUNK):
            buffer += block
            records, buffer = _cut(buffer, head.group(1) if head else b"{")
            for record in records:
                yield RawRecord(path.name, str(index), bytes(record))
                index += 1
    try:
        last = _raw_list.decode(b"[" + buffer)
    except msgspec.DecodeError as error:
        raise UserError(f"{path}: breaks off or is no JSON behind record {index} ({error}); fetch it again") from error
    for record in last:
        yield RawRecord(path.name, str(index), bytes(record))
        index += 1


def json_member(path: Path, key: str) -> Iterator[RawRecord]:
    """The objects of the list under `key` of a file that is one JSON object, in order.

    The file is mapped, not read: what is held is a reference a record.

    Raises:
        UserError: the file is not such an object.
    """
    holder = msgspec.defstruct("Holder", [("items", list[msgspec.Raw], msgspec.field(name=key))])
    with path.open("rb") as file:
        # Not closed by hand: every record refers to the mapping, which goes when the last of them does.
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
    try:
        records = msgspec.json.decode(content, type=holder).items  # type: ignore[attr-defined]
    except msgspec.DecodeError as error:
        raise UserError(f'{path}: no list under the key "{key}" ({error}); is it the right file?') from error
    for index, record in enumerate(records):
        yield RawRecord(path.name, f"{key}[{index}]", bytes(record))


def json_object(path: Path) -> Iterator[RawRecord]:
    """The entries of a top-level JSON object, key by key, in order.

    Raises:
        UserError: the file is not one JSON object.
    """
    try:
        entries = _raw_dict.decode(path.read_bytes())
    except msgspec.DecodeError as error:
        raise UserError(f"{path}: not one JSON object ({error})") from error
    for key, value in entries.items():
        yield RawRecord(path.name, key, bytes(value))


def json_lines(path: Path) -> Iterator[RawRecord]:
    """The lines of a JSON-lines file that are not blank, numbered from 1."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield RawRecord(path.name, f"line {number}", line)


def csv_rows(path: Path) -> Iterator[RawRecord]:
    """The rows of a CSV file with a header, as JSON objects of strings, numbered from 1."""
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file), 1):
            surplus: Any = row.pop(None, None)  # type: ignore[call-overload]
            cells = {name: cell for name, cell in row.items() if cell is not None}
            if surplus is not None:
                cells["surplus cells"] = ",".join(surplus)
            yield RawRecord(path.name, f"row {number}", msgspec.json.encode(cells))


def _cut(buffer: bytes, head: bytes) -> tuple[list[msgspec.Raw], bytes]:
    """Split off the whole records at the front of the buffer: (records, rest).

    Cuts in front of an object that begins with the list's first key come first, since nested objects rarely do.
    """
    cuts = list(_BETWEEN_RECORDS.finditer(buffer, max(0, len(buffer) - (CHUNK >> 2))))
    cuts.sort(key=lambda match: (buffer.startswith(head, match.end()), match.start()))
    for cut in reversed(cuts):
        try:
            return _raw_list.decode(b"[" + buffer[: cut.start() + 1] + b"]"), buffer[cut.end() :]
        except msgspec.DecodeError:
            continue
    return [], buffer
