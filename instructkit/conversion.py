"""Raw release to examples: sharded, in several processes, safe to stop anywhere, with every misfit on record.

What a shard holds depends on the release alone: so many raw records, or so many bytes of them. A shard that is there is
whole; a conversion that was stopped, by kill -9 or a power cut of the shell, goes on with the shards that are missing
and ends in the same bytes as one that never stopped, whatever the number of processes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from instructkit import __version__, hashes, sources
from instructkit.errors import UserError
from instructkit.examples import (
    FORMAT_VERSION,
    MANIFEST,
    REJECTED,
    ROW_GROUP,
    Example,
    Manifest,
    SourceFile,
    write_atomically,
)
from instructkit.releases import RawRecord
from instructkit.shards import (
    BROKEN,
    MISSING,
    PARTIAL,
    STATUS_BITS,
    Guard,
    Rejected,
    ShardReport,
    Task,
    admitted,
    forget_media,
    make_shard,
    shard_name,
)
from instructkit.sources import Reading
from instructkit.workers import in_processes

SHARD_RECORDS = 16_384
SHARD_BYTES = 16 << 20
REJECT_LIMIT = 0.01
_LOCK_SECONDS = 10

Progress = Callable[[int], object]
Repeats = dict[int, dict[int, str]]
"""Examples taken out because an earlier shard has their id: shard -> row -> id."""


class Plan(msgspec.Struct):
    """What a conversion is made from; kept beside unfinished shards so that they are only joined to their own kind."""

    source: str
    split: str
    layout: str
    media_root: str
    limit: int | None
    files: list[SourceFile]
    check_images: bool = False
    shard_records: int = SHARD_RECORDS
    shard_bytes: int = SHARD_BYTES
    format: int = FORMAT_VERSION
    instructkit: str = __version__


class Outcome(NamedTuple):
    """What `convert` did.

    Attributes:
        folder: where the examples are.
        manifest: what they are.
        converted: False if they were there already, made from the same files.
        warnings: what the source found worth saying about the release.
    """

    folder: Path
    manifest: Manifest
    converted: bool
    warnings: list[str] = []

    @property
    def too_many_rejects(self) -> bool:
        """Whether more than `REJECT_LIMIT` of the records were rejected."""
        return self.manifest.rejected > REJECT_LIMIT * max(self.manifest.records, 1)

    @property
    def agrees(self) -> bool | None:
        """Whether there are as many examples as the authors state; None where that cannot be said."""
        if self.manifest.published is None or self.manifest.limit is not None:
            return None
        return self.manifest.examples == self.manifest.published

    def summary(self) -> str:
        """One line: folder, examples, rejects, media, and how the count stands to the published one."""
        made = self.manifest
        parts = [
            f"{self.folder}: {made.examples:,} examples",
            f"{made.rejected:,} of {made.records:,} records rejected",
        ]
        if made.media is not None:
            parts.append("{checked:,} media files checked, {missing:,} missing, {broken:,} broken".format(**made.media))
        if made.published is None:
            parts.append("no count published")
        elif made.limit is not None:
            parts.append(f"published {made.published:,}, not compared as --limit was {made.limit:,}")
        else:
            agrees = "agrees" if self.agrees else f"differs by {made.examples - made.published:+,}"
            parts.append(f"published {made.published:,}: {agrees}")
        return ", ".join(parts)

    def complaint(self) -> str:
        """Why too many rejects are an error: how many, where they are listed, and the first reason."""
        path = self.folder / REJECTED
        with path.open("rb") as file:
            first = msgspec.json.decode(file.readline(), type=Rejected)
        share = self.manifest.rejected / self.manifest.records
        return (
            f"{self.manifest.rejected:,} of {self.manifest.records:,} records ({share:.1%}, more than"
            f" {REJECT_LIMIT:.0%}) do not fit, see {path}; the first: {first.file}, {first.record}: {first.reason}"
        )


def convert(
    name: str,
    raw: Path,
    out: Path,
    *,
    split: str | None = None,
    images: Path | None = None,
    limit: int | None = None,
    jobs: int = 1,
    check_images: bool = False,
    progress: Progress = lambda records: None,
) -> Outcome:
    """Convert one split of one source into `out/<name>/<split>`.

    Args:
        name: a source (`instructkit sources`).
        raw: the folder with the release's files; for data of one's own a file, too.
        out: where converted datasets are kept.
        split: the split; by default the one that the paper uses, or the one that a file of one's own is.
        images: folder that media paths start from, if not below `raw` as the source expects.
        limit: stop after so many raw records.
        jobs: number of processes; 1 converts in this one. The result does not depend on it.
        check_images: decode every picture and a frame of every video; records whose media are missing, broken or tiny
            are rejected. Always done for data of one's own. Found again with nothing amiss, the result is kept;
            otherwise the check is made anew.
        progress: called with the number of raw records done since the last call.

    Raises:
        UserError: unknown source or split, missing or broken file, or somebody else is converting into the folder.
    """
    source = sources.source(name)
    split = split or source.default_split(raw)
    if source.examples_of is not None:
        raise UserError(f"{name} needs no conversion: it uses the examples of {source.examples_of}; convert that")
    source.find_split(split)
    if images is not None and not images.is_dir():
        raise UserError(f"{images}: no such folder of images")
    reading = sources.read(name, raw, split)
    plan = Plan(
        source=name,
        split=split,
        layout=reading.layout,
        media_root=str((images or reading.media_root).resolve()),
        limit=limit,
        files=[_fingerprint(path, raw) for path in reading.files],
        check_images=check_images or source.own,
        shard_records=SHARD_RECORDS,
        shard_bytes=SHARD_BYTES,
    )
    folder = out / name / split
    with _locked(folder):
        finished = _finished(folder, plan)
        if finished is not None:
            shutil.rmtree(folder / PARTIAL, ignore_errors=True)
            return Outcome(folder, finished, False, reading.warnings)
        _start(folder, plan)
        reports = _make_shards(folder, plan, reading, jobs, progress)
        manifest = _finish(folder, plan, reports)
    return Outcome(folder, manifest, True, reading.warnings)


def convert_records(
    reading: Reading, records: list[RawRecord], guard: Guard | None = None
) -> tuple[list[Example], list[Rejected]]:
    """Convert raw records in memory; those that do not fit come back with the reason.

    Without a `guard` only the source's own conversion decides.
    """
    rejected: list[Rejected] = []
    return list(admitted(reading, records, guard, rejected)), rejected


def guard_of(name: str, split: str, media_root: Path | None = None) -> Guard:
    """The guard that `convert` puts behind a source's conversion."""
    source = sources.source(name)
    return Guard(source.task, f"{name}/{split}/", source.find_split(split).hidden, media_root)


def _make_shards(folder: Path, plan: Plan, reading: Reading, jobs: int, progress: Progress) -> list[ShardReport]:
    """Convert what is missing; the reports of all shards, in order."""
    reports: list[ShardReport] = []

    def missing() -> Iterator[Task]:
        for number, records in enumerate(_batches(reading, plan)):
            path = folder / PARTIAL / f"{shard_name(number)}.json"
            if path.exists():
                reports.append(msgspec.json.decode(path.read_bytes(), type=ShardReport))
                progress(len(records))
            else:
                yield Task.of(number, records)

    forget_media()
    media_root = Path(plan.media_root) if plan.check_images else None
    work = partial(make_shard, folder, reading, partial(guard_of, plan.source, plan.split, media_root))
    for report in in_processes(work, missing(), jobs):
        reports.append(report)
        progress(report.records)
    return sorted(reports, key=lambda report: report.number)


def _batches(reading: Reading, plan: Plan) -> Iterator[list[RawRecord]]:
    batch: list[RawRecord] = []
    size = 0
    for record in islice(reading.records, plan.limit):
        batch.append(record)
        size += len(record.data)
        if len(batch) == plan.shard_records or size >= plan.shard_bytes:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder against other conversions; worker processes hold it too, until the last of them is gone."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        for _ in range(_LOCK_SECONDS * 10):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
        else:
            raise UserError(f"{folder}: another conversion is writing here; wait for it, or choose another --out")
        yield
    finally:
        os.close(handle)


def _start(folder: Path, plan: Plan) -> None:
    """Make the folder ready: keep shards of the same plan, remove everything else of an earlier conversion."""
    partial_folder = folder / PARTIAL
    plan_file = partial_folder / "plan.json"
    encoded = msgspec.json.encode(plan)
    (folder / MANIFEST).unlink(missing_ok=True)
    if not plan_file.exists() or plan_file.read_bytes() != encoded:
        # The plan goes first: without it whatever else is left counts for nothing, should we be stopped here.
        plan_file.unlink(missing_ok=True)
        shutil.rmtree(partial_folder, ignore_errors=True)
        for path in [folder / REJECTED, *folder.glob("shard-*")]:
            path.unlink(missing_ok=True)
        partial_folder.mkdir()
        write_atomically(plan_file, encoded)
    for path in (*folder.glob("*.tmp"), *partial_folder.glob("*.tmp")):
        path.unlink()


def _finished(folder: Path, plan: Plan) -> Manifest | None:
    """The manifest in the folder, if it was made from the same plan, is complete and misses no media."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except msgspec.DecodeError:
        return None
    names = ("source", "split", "layout", "media_root", "limit", "files", "format", "instructkit")
    same = all(getattr(manifest, name) == getattr(plan, name) for name in names)
    media = manifest.media or {}
    same = same and plan.check_images == (manifest.media is not None)
    same = same and media.get("missing", 0) == media.get("broken", 0) == 0
    return manifest if same and all((folder / shard).is_file() for shard in manifest.shards) else None


def _finish(folder: Path, plan: Plan, reports: list[ShardReport]) -> Manifest:
    """Take out repeats over shards, join the rejects, write the manifest, remove the traces of the work."""
    repeats = _drop_repeats(folder, reports)
    _join_rejects(folder, reports, repeats)
    source = sources.source(plan.source)
    shards = {
        f"{shard_name(report.number)}.parquet": report.examples - len(repeats.get(report.number, ()))
        for report in reports
    }
    manifest = Manifest(
        source=plan.source,
        split=plan.split,
        task=source.task,
        role=source.role,
        layout=plan.layout,
        media_root=plan.media_root,
        limit=plan.limit,
        examples=sum(shards.values()),
        records=sum(report.records for report in reports),
        rejected=sum(report.rejected for report in reports) + sum(map(len, repeats.values())),
        published=source.find_split(plan.split).published,
        media=_media_totals(folder, reports) if plan.check_images else None,
        shards=shards,
        files=plan.files,
        instructkit=plan.instructkit,
    )
    write_atomically(folder / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
    shutil.rmtree(folder / PARTIAL)
    return manifest


def _drop_repeats(folder: Path, reports: list[ShardReport]) -> Repeats:
    """Remove examples whose id an earlier shard has too, and say which."""
    path = folder / PARTIAL / "repeats.json"
    if path.exists():
        repeats = msgspec.json.decode(path.read_bytes(), type=Repeats)
    else:
        repeats = _find_repeats(folder, reports)
        write_atomically(path, msgspec.json.encode(repeats))
    for shard, rows in repeats.items():
        path = folder / f"{shard_name(shard)}.parquet"
        table = pq.read_table(path)
        if len(table) == reports[shard].examples:  # else it is done, and we were stopped behind it
            keep = np.ones(len(table), bool)
            keep[list(rows)] = False
            pq.write_table(table.filter(pa.array(keep)), path.with_suffix(".tmp"), ROW_GROUP, compression="zstd")
            os.replace(path.with_suffix(".tmp"), path)
    return repeats


def _find_repeats(folder: Path, reports: list[ShardReport]) -> Repeats:
    repeats: Repeats = {}
    for places in hashes.repeated([folder / PARTIAL / f"{shard_name(report.number)}.ids" for report in reports]):
        seen: set[str] = set()
        for shard, row in places:
            name = pq.read_table(folder / f"{shard_name(shard)}.parquet", columns=["id"])["id"][row].as_py()
            if name in seen:
                repeats.setdefault(shard, {})[row] = name
            seen.add(name)
    return {shard: dict(sorted(rows.items())) for shard, rows in sorted(repeats.items())}


def _join_rejects(folder: Path, reports: list[ShardReport], repeats: Repeats) -> None:
    """Write `rejected.jsonl`: the shards' lines in order, each shard's repeats behind its own."""
    path = folder / REJECTED
    with path.with_suffix(".tmp").open("wb") as joined:
        for report in reports:
            joined.write((folder / PARTIAL / f"{shard_name(report.number)}.rejected").read_bytes())
            for name in repeats.get(report.number, {}).values():
                reject = Rejected(report.file, name, "another record before has an example with this id")
                joined.write(msgspec.json.encode(reject) + b"\n")
    os.replace(path.with_suffix(".tmp"), path)


def _media_totals(folder: Path, reports: list[ShardReport]) -> dict[str, int]:
    """How many different files were looked at, and how many of them are missing or broken."""
    counts = np.zeros(4, np.int64)
    for values in hashes.distinct([folder / PARTIAL / f"{shard_name(report.number)}.media" for report in reports]):
        counts += np.bincount((values & STATUS_BITS).astype(np.int64), minlength=4)
    return {"checked": int(counts.sum()), "missing": int(counts[MISSING]), "broken": int(counts[BROKEN])}


def _fingerprint(path: Path, raw: Path) -> SourceFile:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    folder = raw.parent if path == raw else raw
    name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.as_posix()
    return SourceFile(path=name, bytes=path.stat().st_size, sha256=digest.hexdigest())
