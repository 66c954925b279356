"""Streams of raw records out of release files: JSON lists, JSON objects, JSON lines and CSV, flat in memory.

Every stream yields `RawRecord`s, whose bytes are decoded later (in a worker, if there are several) with the source's
`msgspec.Struct`, so that one bad record is one reject and never the end of a file.
"""

from __future__ import annotations

import csv
import mmap
import re
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import msgspec

from instructkit.errors import UserError

CHUNK = 1 << 20
T = TypeVar("T")

_FIRST_KEY = re.compile(rb'\s*(\{\s*"[^"\\]*"|\[)')
_MARK = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|["{}\[\]]', re.DOTALL)
_COMMA = re.compile(rb"\s*,\s*(?=[^\s\]])")
_QUOTE = ord('"')
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that do not decode; `UnicodeDecodeError` where a key or a text is no UTF-8."""

_raw_list = msgspec.json.Decoder(list[msgspec.Raw])
_raw_dict = msgspec.json.Decoder(dict[str, msgspec.Raw])


class RawRecord(NamedTuple):
    """One undecoded record: the file it is in, where (index or key) and its JSON bytes."""

    file: str
    key: str
    data: bytes


class Reject(Exception):
    """This record cannot become an example; the message is the reason and goes to `rejected.jsonl`."""


class MissingFile(UserError):
    """A file of the release is not there."""


def require(root: Path, *alternatives: str) -> Path:
    """The first of the alternative files that exists below `root`.

    Raises:
        MissingFile: none does; the message names the folder, all that was looked for, and a folder beside that has it.
    """
    if not root.is_dir():
        raise MissingFile(f"{root}: no such folder")
    found = _first_there(root, alternatives)
    if found is not None:
        return found
    near = next((folder for folder in nearby(root) if _first_there(folder, alternatives)), None)
    hint = "" if near is None else f"; {_first_there(near, alternatives)} is there: did you mean --raw {near}?"
    raise MissingFile(f"{root}: none of {', '.join(alternatives)} is here{hint}")


def nearby(root: Path) -> list[Path]:
    """The folders that may be meant where a folder is one too high or too low: those in it, and the one around it."""
    return [*sorted(path for path in root.iterdir() if path.is_dir()), root.absolute().parent]


def _first_there(root: Path, alternatives: Iterable[str]) -> Path | None:
    return next((root / name for name in alternatives if (root / name).exists()), None)


def read_json(path: Path, kind: type[T]) -> T:
    """Decode one whole file with a type; for files that are small or whose parts are needed at random.

    Raises:
        UserError: the file is not JSON or does not have that type.
    """
    try:
        return msgspec.json.decode(_content(path), type=kind)
    except UNDECODABLE as error:
        raise UserError(f"{path}: {error}; is it the right file, and whole?") from error


def json_list(path: Path) -> Iterator[RawRecord]:
    """The elements (objects or lists) of a file that is one JSON list, in order.

    Chunks are cut between two elements, so memory is that of a few chunks whatever the file's size, or of the largest
    element if that is more.

    Raises:
        UserError: the file is not a JSON list, or it ends or breaks inside it.
    """
    index = 0
    with _open(path) as file:
        rest = file.read(CHUNK).removeprefix(_BYTE_ORDER_MARK).lstrip()
        if rest[:1] != b"[":
            raise UserError(f"{path}: does not begin with a JSON list; is it the right file?")
        rest = rest[1:]
        head = _FIRST_KEY.match(rest)
        # Reads at least as much as is left over, so that an element of many chunks is not searched once a chunk.
        while block := file.read(max(CHUNK, len(rest))):
            elements, rest = _cut(rest + block, head.group(1) if head else b"{", path, index)
            for element in elements:
                yield RawRecord(path.name, str(index), bytes(element))
                index += 1
    for element in _elements(b"[" + rest, path, index):
        yield RawRecord(path.name, str(index), bytes(element))
        index += 1


def json_member(path: Path, key: str) -> Iterator[RawRecord]:
    """The elements of the list under `key` of a file that is one JSON object, in order.

    The file is mapped, not read: what is held is a reference a record.

    Raises:
        UserError: the file is not such an object.
    """
    holder = msgspec.defstruct("Holder", [("items", list[msgspec.Raw], msgspec.field(name=key))])
    try:
        records = msgspec.json.decode(_content(path), type=holder).items  # type: ignore[attr-defined]
    except UNDECODABLE as error:
        raise UserError(f'{path}: no list under the key "{key}" ({error}); is it the right file, and whole?') from error
    name = path.name
    for index, record in enumerate(records):
        yield RawRecord(name, f"{key}[{index}]", bytes(record))


def json_object(path: Path) -> Iterator[RawRecord]:
    """The entries of a top-level JSON object, key by key, in order; of a repeated key the last.

    The file is mapped, not read: what is held is a key and a reference a record.

    Raises:
        UserError: the file is not one JSON object.
    """
    try:
        entries = _raw_dict.decode(_content(path))
    except UNDECODABLE as error:
        raise UserError(f"{path}: not one JSON object ({error}); is it the right file, and whole?") from error
    for key, value in entries.items():
        yield RawRecord(path.name, key, bytes(value))


def json_lines(path: Path) -> Iterator[RawRecord]:
    """The lines of a JSON-lines file that are not blank, numbered from 1.

    Raises:
        UserError: the file cannot be read.
    """
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
            if line.strip():
                yield RawRecord(path.name, f"line {number}", line)


def csv_rows(path: Path) -> Iterator[RawRecord]:
    """The rows of a CSV file with a header, as JSON objects of strings, numbered from 1.

    Cells that a short row lacks are left out; those that a long row has too many come as `surplus cells`.

    Raises:
        UserError: the file cannot be read, is not UTF-8 or no CSV.
    """
    number = 0
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for number, row in enumerate(csv.DictReader(file), 1):
                surplus: Any = row.pop(None, None)
                cells = {name: cell for name, cell in row.items() if cell is not None}
                if surplus is not None:
                    cells["surplus cells"] = ",".join(surplus)
                yield RawRecord(path.name, f"row {number}", msgspec.json.encode(cells))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no CSV in UTF-8 behind row {number} ({error}); is it the right file?") from error


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def _content(path: Path) -> memoryview:
    """The bytes of a file, mapped; the mapping goes when the last record that refers to it does."""
    with _open(path) as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
    marked = content[:3] == _BYTE_ORDER_MARK
    return memoryview(content)[3:] if marked else memoryview(content)


def _cut(buffer: bytes, head: bytes, path: Path, index: int) -> tuple[list[msgspec.Raw], bytes]:
    """Split off the whole elements at the front of the buffer: (elements, rest).

    The quick guess is to cut in front of the last place that looks like the beginning of the list's first element. A
    place inside a string or a nested list does not decode, and then every bracket is counted.
    """
    guess = buffer.rfind(head)
    front = buffer[: max(guess, 0)].rstrip()
    if front.endswith((b"},", b"],")):
        try:
            return _raw_list.decode(b"[" + front[:-1] + b"]"), buffer[guess:]
        except UNDECODABLE:
            pass
    last = deque(_boundaries(buffer), maxlen=1)
    end, follows = last[0] if last else (0, 0)
    return _elements(b"[" + buffer[:end] + b"]", path, index), buffer[follows:]


def _elements(text: bytes, path: Path, index: int) -> list[msgspec.Raw]:
    """The elements of a JSON list, the first of which is number `index` of the file.

    Raises:
        UserError: it is none; the message says behind which element.
    """
    try:
        return _raw_list.decode(text)
    except UNDECODABLE as error:
        begin = 1
        for end, follows in _boundaries(text[1:]):
            try:
                msgspec.json.decode(text[begin : end + 1])
            except UNDECODABLE:
                break
            index, begin = index + 1, follows + 1
        reason = str(error).split(" (byte")[0]
        raise UserError(
            f"{path}: breaks off or is no JSON behind {index} records ({reason}); fetch it again"
        ) from error


def _boundaries(text: bytes) -> Iterator[tuple[int, int]]:
    """Where elements of a list end and the next begin: behind a bracket at depth 0 that a comma follows."""
    depth = 0
    for mark in _MARK.finditer(text):
        char = text[mark.start()]
        if char == _QUOTE:
            if mark.end() - mark.start() == 1:
                return  # a string that goes on behind the text
        elif char in b"{[":
            depth += 1
        else:
            depth -= 1
            if depth == 0 and (comma := _COMMA.match(text, mark.end())):
                yield mark.end(), comma.end()
