"""One shard: raw records in, a Parquet file and its report out, with every record that does not fit on record.

Beside `shard-00000.parquet` stand, until the conversion is complete, in `.partial/`:

    shard-00000.json       `ShardReport`, written last: its presence means that the shard was whole
    shard-00000.records    `ShardRecords`: where the records come from, which of them do not fit
    shard-00000.ids        hashes of the examples' ids, by which repeats are found
    shard-00000.media      hashes of the checked media paths, the last two bits 0 fine, 1 missing, 2 broken
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, groupby, repeat
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from instructkit.conversion.repeats import hash_texts
from instructkit.data.dataset import write_shard
from instructkit.data.examples import Example, problem
from instructkit.data.media import check_media, located, there
from instructkit.data.readers import UNDECODABLE, RawRecord, Reject
from instructkit.errors import UserError
from instructkit.files import sha256_of, write_atomically
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
    """Counts of one shard and its SHA-256, with every example of the records that fit, repeats included."""

    number: int
    records: int
    examples: int
    rejected: int
    sha256: str


class ShardRejects(msgspec.Struct):
    """The records of a shard that do not fit, by their number in it."""

    rejected: dict[int, Rejected]


class ShardRecords(ShardRejects):
    """The records of a shard.

    Attributes:
        examples: of each example that the shard was made with, the number of its record.
        files: the files that the records come from, each with how many follow on each other.
        keys: where in its file each record is.
    """

    examples: list[int]
    files: list[tuple[str, int]]
    keys: Sequence[str]

    def places(self) -> list[tuple[str, str]]:
        """File and key of each record."""
        files = chain.from_iterable(repeat(file, count) for file, count in self.files)
        return list(zip(files, self.keys, strict=True))


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


class Seen:
    """Ids of the records before. A record that repeats one of them is rejected as a whole, and its ids do not count."""

    def __init__(self) -> None:
        self._ids: set[str] = set()

    def take(self, ids: Sequence[str]) -> str | None:
        """Take the ids of the next record; why it is rejected, or None."""
        for name in ids:
            if name in self._ids:
                return f"id {name!r} was there before"
        self._ids.update(ids)
        return None


class Guard:
    """Looks at every example of a shard before it is written, and notes ids, records and media.

    Args:
        task: task group of the source.
        prefix: what every id begins with.
        hidden: whether the split may lack answers (`instructkit.sources.Split.hidden`).
        media_root: folder of the media, to check every file that is named; None for no check.
    """

    def __init__(self, task: str, prefix: str = "", hidden: bool = False, media_root: Path | None = None) -> None:
        self.task, self.prefix, self.hidden, self.media_root = task, prefix, hidden, media_root
        self.ids: list[str] = []
        self.records: list[int] = []
        self.media: dict[str, int] = {}

    def admit(self, examples: Sequence[Example], record: int) -> None:
        """Take the examples of one record. Whether an earlier record has one of their ids is not looked at.

        Args:
            examples: of the record.
            record: its number in the shard.

        Raises:
            Reject: one of them is wrong, or two have the same id.
        """
        ids = [example.id for example in examples]
        if len(set(ids)) < len(ids):
            raise Reject("two of its examples have the same id")
        for example in examples:
            reason = problem(example, self.task, self.hidden) or self._bad_id(example.id) or self._bad_media(example)
            if reason is not None:
                raise Reject(reason)
        self.ids += ids
        self.records += [record] * len(ids)

    def _bad_id(self, name: str) -> str | None:
        if not name.startswith(self.prefix) or len(name) == len(self.prefix):
            return f"id {name!r} does not begin with {self.prefix!r}"
        return None

    def _bad_media(self, example: Example) -> str | None:
        if self.media_root is None:
            return None
        first = None
        for path in (*example.images, *([example.video] if example.video else [])):
            self.media[path], reason = _look_at(self.media_root / path)
            first = first or reason
        return first


def admitted(
    reading: Reading,
    records: Iterable[RawRecord],
    guard: Guard | None,
    rejected: dict[int, Rejected],
    seen: Seen | None = None,
) -> Iterator[Example]:
    """The examples of raw records, in order; records that do not fit go to `rejected` by their number, as a whole."""
    for number, record in enumerate(records):
        try:
            examples = reading.convert(record)
            if guard is not None:
                guard.admit(examples, number)
            reason = seen.take([example.id for example in examples]) if seen is not None else None
            if reason is not None:
                raise Reject(reason)
        except (Reject, *UNDECODABLE) as error:
            rejected[number] = Rejected(record.file, record.key, str(error))
        else:
            yield from examples


def make_shard(folder: Path, reading: Reading, new_guard: Callable[[], Guard], task: Task) -> ShardReport:
    """Convert and write one shard with all that stands beside it, whole or not at all.

    It holds records that repeat an id, too: which of them stay depends on all shards before.
    """
    guard = new_guard()
    name = shard_name(task.number)
    partial = folder / PARTIAL
    rejected: dict[int, Rejected] = {}
    written = write_shard(folder / f"{name}.parquet", admitted(reading, task.records, guard, rejected))
    files = [(file, sum(1 for _ in run)) for file, run in groupby(task.files)]
    records = ShardRecords(rejected=rejected, examples=guard.records, files=files, keys=task.keys)
    write_atomically(partial / f"{name}.records", msgspec.json.encode(records))
    write_atomically(partial / f"{name}.ids", hash_texts(guard.ids).tobytes())
    write_atomically(partial / f"{name}.media", _media_hashes(guard.media).tobytes())
    report = ShardReport(
        number=task.number,
        records=len(task.keys),
        examples=written,
        rejected=len(rejected),
        sha256=sha256_of(folder / f"{name}.parquet"),
    )
    write_atomically(partial / f"{name}.json", msgspec.json.encode(report))
    return report


def forget_media() -> None:
    """Look at every picture and video again: what an earlier conversion of this process saw may have been mended."""
    _look_at.cache_clear()


def shard_name(number: int) -> str:
    """`shard-00007`."""
    return f"shard-{number:05}"


@lru_cache(maxsize=1 << 17)
def _look_at(path: Path) -> tuple[int, str | None]:
    """(status, reason) of a picture or video; each is decoded once a process, unless very many others come between."""
    try:
        if not there(located(path)):
            return MISSING, f"{path}: missing"
    except UserError as error:
        return MISSING, str(error)
    reason = check_media(path)
    return (FINE, None) if reason is None else (BROKEN, reason)


def _media_hashes(media: dict[str, int]) -> np.ndarray:
    hashes = hash_texts(media) & ~STATUS_BITS
    return hashes | np.fromiter(media.values(), np.uint64, len(media))
