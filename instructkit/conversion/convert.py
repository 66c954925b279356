"""Raw release to examples: sharded, in several processes, safe to stop anywhere, with every misfit on record.

What a shard holds depends on the release alone: a fixed number of raw records, or of bytes. A shard that has the
SHA-256 of its report is whole; a conversion that was stopped, by kill -9 or a power cut of the shell, goes on with the
shards that are missing or damaged and ends in the same bytes as one that never stopped, whatever the number of
processes. Which records are kept does not depend on where one shard ends and the next begins.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from instructkit import __version__, sources
from instructkit.conversion.code_digest import code_digest
from instructkit.conversion.miniatures import is_miniature, with_ledger
from instructkit.conversion.processes import in_processes
from instructkit.conversion.repeats import distinct, repeated_rows
from instructkit.conversion.shards import (
    BROKEN,
    MISSING,
    PARTIAL,
    STATUS_BITS,
    Guard,
    Rejected,
    Seen,
    ShardRecords,
    ShardRejects,
    ShardReport,
    Task,
    admitted,
    forget_media,
    make_shard,
    shard_name,
)
from instructkit.conversion.words import with_words
from instructkit.data import media_files
from instructkit.data.dataset import FORMAT_VERSION, MANIFEST, REJECTED, ROW_GROUP, Manifest, SourceFile, read_manifest
from instructkit.data.examples import Example
from instructkit.data.readers import RawRecord
from instructkit.errors import UserError
from instructkit.files import damage, sha256_of, write_atomically
from instructkit.sources import Reading

SHARD_RECORDS = 16_384
SHARD_BYTES = 16 << 20
REJECT_LIMIT = 0.01
SHOWN_REJECTS = 3
_LOCK_SECONDS = 10

Progress = Callable[[int], object]
Repeats = dict[int, dict[int, str]]
"""Records taken out because an earlier one has an id of theirs: shard -> number of the record -> reason."""


class Plan(msgspec.Struct):
    """What a conversion is made from; kept beside unfinished shards so that they are only joined to their own kind."""

    source: str
    split: str
    layout: str
    media_root: str
    limit: int | None
    files: list[SourceFile]
    notes: list[str] = []
    check_images: bool = False
    miniature: bool = False
    shard_records: int = SHARD_RECORDS
    shard_bytes: int = SHARD_BYTES
    code: str = ""
    format: int = FORMAT_VERSION
    instructkit: str = __version__


class Outcome(NamedTuple):
    """What `convert` did.

    Attributes:
        folder: where the examples are.
        manifest: what they are.
        converted: False if they were there already, made from the same files.
        warnings: what the source found worth saying about the release, the first reasons of rejects, and what
            an earlier conversion's files have lost; of media files, how many of some that were looked at are missing.
        no_media: why the examples cannot be used, as none of the media files that were looked at is there; else empty.
    """

    folder: Path
    manifest: Manifest
    converted: bool
    warnings: list[str] = []
    no_media: str = ""

    @property
    def too_many_rejects(self) -> bool:
        """Whether more than `REJECT_LIMIT` of the records were rejected."""
        return self.manifest.rejected > REJECT_LIMIT * max(self.manifest.records, 1)

    @property
    def agrees(self) -> bool | None:
        """Whether there are as many examples as the authors state; None where that cannot be said."""
        if self.manifest.published is None or self.manifest.limit is not None or self.manifest.miniature:
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
        if made.miniature:
            parts.append("a miniature")
        elif made.published is None:
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
    force: bool = False,
    ocr: str | None = None,
    progress: Progress = lambda records: None,
) -> Outcome:
    """Convert one split of one source into `out/<name>/<split>`.

    What is there already is kept if it was made from the same files by the same code, and every file that was written
    still has its SHA-256; if one is missing or damaged, all shards are made again and a warning names it.

    Args:
        name: a source (`instructkit sources`).
        raw: the folder with the release's files; for your own data a file, too.
        out: where converted datasets are kept.
        split: the split; by default the one that the paper uses, or the one that your own file is.
        images: folder that media paths start from, if not below `raw` as the source expects.
        limit: stop after this many raw records.
        jobs: number of processes; 1 converts in this one. The result does not depend on it.
        check_images: decode every picture and a frame of every video; records whose media are missing, broken or tiny
            are rejected. Always done for your own data. A clean earlier check is reused;
            otherwise all media are checked again.
        force: convert again, though nothing has changed, and use nothing of a conversion that was stopped.
        ocr: `package:function` that reads the words on pictures of which the release has none.
        progress: called with the number of raw records done since the last call.

    Raises:
        UserError: unknown source or split, missing or broken file, somebody else is converting into the folder, or a
            miniature would replace what was converted from the published release.
    """
    source = sources.source(name)
    split = split or source.default_split(raw)
    if source.examples_of is not None:
        raise UserError(f"{name} needs no conversion: it uses the examples of {source.examples_of}; convert that")
    source.find_split(split)
    if images is not None and not images.is_dir():
        raise UserError(f"{images}: no such folder of images")
    reading = sources.read(name, raw, split)
    miniature = is_miniature(raw)
    if miniature:
        reading = with_ledger(reading, raw)
    media_root = (images or reading.media_root).resolve()
    if ocr is not None:
        reading = with_words(reading, source, media_root, ocr)
    plan = Plan(
        source=name,
        split=split,
        layout=reading.layout,
        media_root=str(media_root),
        limit=limit,
        files=[_fingerprint(path, raw) for path in reading.files],
        notes=reading.warnings,
        check_images=check_images or source.own,
        miniature=miniature,
        shard_records=SHARD_RECORDS,
        shard_bytes=SHARD_BYTES,
        code=code_digest(sources.module(name).__name__, Guard.__module__, *(ocr.split(":")[:1] if ocr else [])),
    )
    folder = out / name / split
    with _locked(folder):
        if miniature and _holds_published(folder):
            raise UserError(
                f"{folder}: was converted from the published release, which a miniature does not replace; choose "
                f"another folder, such as {out / 'world'}"
            )
        finished, lost = (None, []) if force else _finished(folder, plan)
        if finished is not None:
            shutil.rmtree(folder / PARTIAL, ignore_errors=True)
            return _outcome(folder, finished, False, [])
        _start(folder, plan, force)
        reports = _make_shards(folder, plan, reading, jobs, progress)
        manifest = _finish(folder, plan, reports)
    return _outcome(folder, manifest, True, lost)


def _outcome(folder: Path, manifest: Manifest, converted: bool, lost: list[str]) -> Outcome:
    """The outcome with all that is worth saying, after a look at some media files."""
    looked = media_files.look(folder)
    missing = [looked.line()] if looked.missing and not looked.none_there else []
    warnings = manifest.notes + _first_rejects(folder, manifest) + missing + lost
    return Outcome(folder, manifest, converted, warnings, looked.line() if looked.none_there else "")


def _first_rejects(folder: Path, manifest: Manifest) -> list[str]:
    """Lines that tell the first reasons of rejects, and where the others are listed."""
    with (folder / REJECTED).open("rb") as file:
        first = [msgspec.json.decode(line, type=Rejected) for line in islice(file, SHOWN_REJECTS)]
    lines = [f"rejected {each.file}, {each.record}: {each.reason}" for each in first]
    more = manifest.rejected - len(lines)
    return [*lines, f"{more:,} more rejects are listed in {folder / REJECTED}"] if more > 0 else lines


def convert_records(
    reading: Reading, records: list[RawRecord], guard: Guard | None = None
) -> tuple[list[Example], list[Rejected]]:
    """Convert raw records in memory; those that do not fit come back with the reason.

    Without a `guard` only the source's own conversion decides.
    """
    rejected: dict[int, Rejected] = {}
    seen = None if guard is None else Seen()
    return list(admitted(reading, records, guard, rejected, seen)), list(rejected.values())


def guard_of(name: str, split: str, media_root: Path | None = None) -> Guard:
    """The guard that `convert` puts behind a source's conversion."""
    source = sources.source(name)
    return Guard(source.task, f"{name}/{split}/", source.find_split(split).hidden, media_root)


def _make_shards(folder: Path, plan: Plan, reading: Reading, jobs: int, progress: Progress) -> list[ShardReport]:
    """Convert what is missing; the reports of all shards, in order."""
    reports: list[ShardReport] = []

    def missing() -> Iterator[Task]:
        for number, records in enumerate(_batches(reading, plan)):
            report = _made(folder, number)
            if report is not None:
                reports.append(report)
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


def _made(folder: Path, number: int) -> ShardReport | None:
    """The report of a shard that a conversion before this one made, if the shard is whole."""
    path = folder / PARTIAL / f"{shard_name(number)}.json"
    shard = folder / f"{shard_name(number)}.parquet"
    if not (path.exists() and shard.is_file()):
        return None
    report = msgspec.json.decode(path.read_bytes(), type=ShardReport)
    return report if sha256_of(shard) in (report.sha256, _thinned(folder, number)) else None


def _thinned(folder: Path, number: int) -> str | None:
    """SHA-256 of a shard without its repeats; None while nobody has written it."""
    path = folder / PARTIAL / f"{shard_name(number)}.thinned"
    return path.read_text() if path.exists() else None


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


def _start(folder: Path, plan: Plan, force: bool) -> None:
    """Make the folder ready: keep shards of the same plan, remove everything else of an earlier conversion, or all."""
    partial_folder = folder / PARTIAL
    plan_file = partial_folder / "plan.json"
    encoded = msgspec.json.encode(plan)
    (folder / MANIFEST).unlink(missing_ok=True)
    if force or not plan_file.exists() or plan_file.read_bytes() != encoded:
        # The plan goes first: without it whatever else is left counts for nothing, should we be stopped here.
        plan_file.unlink(missing_ok=True)
        shutil.rmtree(partial_folder, ignore_errors=True)
        for path in [folder / REJECTED, *folder.glob("shard-*")]:
            path.unlink(missing_ok=True)
        partial_folder.mkdir()
        write_atomically(plan_file, encoded)
    for path in (*folder.glob("*.tmp"), *partial_folder.glob("*.tmp")):
        path.unlink()


def _finished(folder: Path, plan: Plan) -> tuple[Manifest | None, list[str]]:
    """The manifest in the folder, if it was made from the same plan, all files are as written and no media are missing.

    Returns:
        the manifest or None, and what has been lost of files that would have been kept.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None, []
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return None, [f"{path}: damaged ({error}), so the dataset was converted again"]
    names = (
        "source",
        "split",
        "layout",
        "media_root",
        "limit",
        "files",
        "notes",
        "code",
        "miniature",
        "format",
        "instructkit",
    )
    same = all(getattr(manifest, name) == getattr(plan, name) for name in names)
    media = manifest.media or {}
    same = same and plan.check_images == (manifest.media is not None)
    same = same and media.get("missing", 0) == media.get("broken", 0) == 0
    if not same or set(manifest.checksums) != {*manifest.shards, REJECTED}:
        return None, []
    lost = damage(folder, manifest.checksums, anew=True)
    if lost:
        return None, [f"{each}; all shards were made again" for each in lost]
    return manifest, []


def _holds_published(folder: Path) -> bool:
    """Whether a folder holds data that are no miniature's; a damaged manifest counts for nothing."""
    try:
        return not read_manifest(folder).miniature
    except UserError:
        return False


def _finish(folder: Path, plan: Plan, reports: list[ShardReport]) -> Manifest:
    """Take out repeats, join the rejects, write the manifest, remove the traces of the work."""
    repeats = _drop_repeats(folder, reports)
    _join_rejects(folder, reports, repeats)
    source = sources.source(plan.source)
    shards, checksums = {}, {}
    for report in reports:
        name = f"{shard_name(report.number)}.parquet"
        dropped = repeats.get(report.number, {})
        shards[name] = report.examples - int(_rows_of(folder, report.number, dropped).sum() if dropped else 0)
        checksums[name] = (_thinned(folder, report.number) if dropped else None) or report.sha256
    checksums[REJECTED] = sha256_of(folder / REJECTED)
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
        miniature=plan.miniature,
        shards=shards,
        checksums=checksums,
        files=plan.files,
        notes=plan.notes,
        code=plan.code,
        instructkit=plan.instructkit,
    )
    write_atomically(folder / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
    shutil.rmtree(folder / PARTIAL)
    return manifest


def _drop_repeats(folder: Path, reports: list[ShardReport]) -> Repeats:
    """Remove the examples of records that repeat an id of a record before, and say which."""
    path = folder / PARTIAL / "repeats.json"
    if path.exists():
        repeats = msgspec.json.decode(path.read_bytes(), type=Repeats)
    else:
        repeats = _find_repeats(folder, reports)
        write_atomically(path, msgspec.json.encode(repeats))
    for shard, records in repeats.items():
        path = folder / f"{shard_name(shard)}.parquet"
        if sha256_of(path) != reports[shard].sha256:
            continue  # it is done, and we were stopped behind it
        keep = ~_rows_of(folder, shard, records)
        partial = path.with_suffix(".tmp")
        pq.write_table(pq.read_table(path).filter(pa.array(keep)), partial, ROW_GROUP, compression="zstd")
        write_atomically(folder / PARTIAL / f"{shard_name(shard)}.thinned", sha256_of(partial))
        os.replace(partial, path)
    return repeats


def _find_repeats(folder: Path, reports: list[ShardReport]) -> Repeats:
    """Go through the records that share an id's hash with another, in order; each shard's ids are read once at most."""
    files = [folder / PARTIAL / f"{shard_name(report.number)}.ids" for report in reports]
    seen = Seen()
    repeats: Repeats = {}
    for shard, chosen in enumerate(repeated_rows(files)):
        if not len(chosen):
            continue
        record_of = _records(folder, shard).examples
        column = pq.read_table(folder / f"{shard_name(shard)}.parquet", columns=["id"])["id"]
        ids = column.take(pa.array(chosen)).to_pylist()
        pairs = zip((record_of[row] for row in chosen), ids, strict=True)
        for record, group in groupby(pairs, key=lambda pair: pair[0]):
            reason = seen.take([name for _, name in group])
            if reason is not None:
                repeats.setdefault(shard, {})[record] = reason
    return repeats


def _records(folder: Path, shard: int) -> ShardRecords:
    return msgspec.json.decode((folder / PARTIAL / f"{shard_name(shard)}.records").read_bytes(), type=ShardRecords)


def _rows_of(folder: Path, shard: int, records: Iterable[int]) -> np.ndarray:
    """Of each example that a shard was made with whether it belongs to one of these records."""
    return np.isin(_records(folder, shard).examples, list(records))


def _join_rejects(folder: Path, reports: list[ShardReport], repeats: Repeats) -> None:
    """Write `rejected.jsonl`, in the order of the records."""
    path = folder / REJECTED
    with path.with_suffix(".tmp").open("wb") as joined:
        for report in reports:
            content = (folder / PARTIAL / f"{shard_name(report.number)}.records").read_bytes()
            rejected = msgspec.json.decode(content, type=ShardRejects).rejected
            if report.number in repeats:
                places = _records(folder, report.number).places()
                for record, reason in repeats[report.number].items():
                    rejected[record] = Rejected(*places[record], reason)
            joined.writelines(msgspec.json.encode(rejected[number]) + b"\n" for number in sorted(rejected))
    os.replace(path.with_suffix(".tmp"), path)


def _media_totals(folder: Path, reports: list[ShardReport]) -> dict[str, int]:
    """How many different files were looked at, and how many of them are missing or broken."""
    files = [folder / PARTIAL / f"{shard_name(report.number)}.media" for report in reports]
    counts = np.bincount((distinct(files) & STATUS_BITS).astype(np.int64), minlength=4)
    return {"checked": int(counts.sum()), "missing": int(counts[MISSING]), "broken": int(counts[BROKEN])}


def _fingerprint(path: Path, raw: Path) -> SourceFile:
    folder = raw.parent if path == raw else raw
    name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.as_posix()
    return SourceFile(path=name, bytes=path.stat().st_size, sha256=sha256_of(path))
