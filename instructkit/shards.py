"""One shard: raw records in, a Parquet file and its report out, with every record that does not fit on record.

Beside `shard-00000.parquet` stand, until the conversion is complete, in `.partial/`:

    shard-00000.json       `ShardReport`, written last: its presence means that the shard is whole
    shard-00000.rejected   the shard's lines of `rejected.jsonl`
    shard-00000.ids        hashes of the examples' ids, by which repeats over shards are found
    shard-00000.media      hashes of the checked media paths, the last two bits 0 fine, 1 missing, 2 broken
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from instructkit.errors import UserError
from instructkit.examples import Example, problem, write_atomically, write_shard
from instructkit.hashes import hash_texts
from instructkit.media import check_media, there
from instructkit.releases import UNDECODABLE, RawRecord, Reject
from instructkit.sources import Reading

FINE, MISSING, BROKEN = range(3)
STATUS_BITS = np.uint64(3)
PARTIAL = ".partial"


class Rejected(msgspec.Struct):
    """One line of `rejected.jsonl`."""

    file: str
    record: str
    reason: str


class ShardReport(msgspec.Struct):
    """Counts of one shard, and the file or files that it was read from."""

    number: int
    file: str
    records: int
    examples: int
    rejected: int


class Task(NamedTuple):
    """The raw records of one shard, laid out in columns: they are pickled five times as fast as rows."""

    number: int
    files: Sequence[str]
    keys: Sequence[str]
    data: Sequence[bytes]

    @classmethod
    def of(cls, number: int, records: Sequence[RawRecord]) -> Task:
        """The task of a shard that holds these records, of which there is at least one."""
        return cls(number, *zip(*records, strict=True))

    @property
    def records(self) -> Iterator[RawRecord]:
        """The records, as they came."""
        return map(RawRecord, self.files, self.keys, self.data)


class Guard:
    """Looks at every example of a shard before it is written.

    Args:
        task: task group of the source.
        prefix: what every id begins with.
        hidden: whether the split may lack answers (`instructkit.sources.Split.hidden`).
        media_root: folder of the media, to check every file that is named; None for no check.
    """

    def __init__(self, task: str, prefix: str = "", hidden: bool = False, media_root: Path | None = None) -> None:
        self.task, self.prefix, self.hidden, self.media_root = task, prefix, hidden, media_root
        self.ids: dict[str, str] = {}
        self.media: dict[str, int] = {}

    def admit(self, examples: Sequence[Example]) -> None:
        """Take the examples of one record.

        Raises:
            Reject: one of them is wrong, or has the id of an earlier one.
        """
        ids = [example.id for example in examples]
        if len(set(ids)) < len(ids):
            raise Reject("two of its examples have the same id")
        for example in examples:
            reason = problem(example, self.task, self.hidden) or self._bad_id(example.id) or self._bad_media(example)
            if reason is not None:
                raise Reject(reason)
        self.ids.update(zip(ids, ids, strict=True))

    def _bad_id(self, name: str) -> str | None:
        if not name.startswith(self.prefix) or len(name) == len(self.prefix):
            return f"id {name!r} does not begin with {self.prefix!r}"
        return f"id {name!r} was there before" if name in self.ids else None

    def _bad_media(self, example: Example) -> str | None:
        if self.media_root is None:
            return None
        first = None
        for path in (*example.images, *([example.video] if example.video else [])):
            self.media[path], reason = _look_at(self.media_root / path)
            first = first or reason
        return first


def admitted(
    reading: Reading, records: Iterable[RawRecord], guard: Guard | None, rejected: list[Rejected]
) -> Iterator[Example]:
    """The examples of raw records, in order; records that do not fit are added to `rejected`, as a whole."""
    for record in records:
        try:
            examples = reading.convert(record)
            if guard is not None:
                guard.admit(examples)
        except (Reject, *UNDECODABLE) as error:
            rejected.append(Rejected(record.file, record.key, str(error)))
        else:
            yield from examples


def make_shard(folder: Path, reading: Reading, new_guard: Callable[[], Guard], task: Task) -> ShardReport:
    """Convert and write one shard with all that stands beside it, whole or not at all."""
    guard = new_guard()
    name = shard_name(task.number)
    partial = folder / PARTIAL
    rejected: list[Rejected] = []
    written = write_shard(folder / f"{name}.parquet", admitted(reading, task.records, guard, rejected))
    lines = b"".join(msgspec.json.encode(reject) + b"\n" for reject in rejected)
    write_atomically(partial / f"{name}.rejected", lines)
    write_atomically(partial / f"{name}.ids", hash_texts(guard.ids).tobytes())
    write_atomically(partial / f"{name}.media", _media_hashes(guard.media).tobytes())
    first, last = task.files[0], task.files[-1]
    report = ShardReport(
        number=task.number,
        file=first if first == last else f"{first} ... {last}",
        records=len(task.keys),
        examples=written,
        rejected=len(rejected),
    )
    write_atomically(partial / f"{name}.json", msgspec.json.encode(report))
    return report


def forget_media() -> None:
    """Look at every picture and video anew: what an earlier conversion of this process saw may have been mended."""
    _look_at.cache_clear()


def shard_name(number: int) -> str:
    """`shard-00007`."""
    return f"shard-{number:05}"


@lru_cache(maxsize=1 << 17)
def _look_at(path: Path) -> tuple[int, str | None]:
    """(status, reason) of a picture or video; each is decoded once a process, unless very many others come between."""
    try:
        if not there(path):
            return MISSING, f"{path}: missing"
    except UserError as error:
        return MISSING, str(error)
    reason = check_media(path)
    return (FINE, None) if reason is None else (BROKEN, reason)


def _media_hashes(media: dict[str, int]) -> np.ndarray:
    hashes = hash_texts(media) & ~STATUS_BITS
    return hashes | np.fromiter(media.values(), np.uint64, len(media))
