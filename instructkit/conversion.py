"""Raw release to examples: sharded, safe to stop anywhere, with every record that does not fit on record.

A shard is a fixed number of raw records, so what a shard holds depends on the release alone. A shard that is there is
whole (files are written aside and renamed); a conversion that was stopped goes on behind the last one and ends in the
same bytes as one that never stopped.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec

from instructkit import __version__, sources
from instructkit.errors import UserError
from instructkit.examples import (
    FORMAT_VERSION,
    MANIFEST,
    REJECTED,
    Example,
    Manifest,
    SourceFile,
    write_atomically,
    write_shard,
)
from instructkit.releases import RawRecord, Reject
from instructkit.sources import Reading

SHARD_RECORDS = 16_384
REJECT_LIMIT = 0.01

Progress = Callable[[int], None]


class Rejected(msgspec.Struct):
    """One line of `rejected.jsonl`."""

    file: str
    record: str
    reason: str


class Plan(msgspec.Struct):
    """What a conversion is made from; kept beside unfinished shards so that they are only joined to their own kind."""

    source: str
    split: str
    layout: str
    media_root: str
    limit: int | None
    files: list[SourceFile]
    shard_records: int = SHARD_RECORDS
    format: int = FORMAT_VERSION
    instructkit: str = __version__


class ShardReport(msgspec.Struct):
    """Counts of one shard."""

    records: int
    examples: int
    rejected: list[Rejected]


class Outcome(NamedTuple):
    """What `convert` did."""

    folder: Path
    manifest: Manifest
    converted: bool

    @property
    def too_many_rejects(self) -> bool:
        """Whether more than `REJECT_LIMIT` of the records were rejected."""
        return self.manifest.rejected > REJECT_LIMIT * max(self.manifest.records, 1)


def convert(
    name: str,
    raw: Path,
    out: Path,
    *,
    split: str | None = None,
    images: Path | None = None,
    limit: int | None = None,
    progress: Progress = lambda records: None,
) -> Outcome:
    """Convert one split of one source into `out/<name>/<split>`.

    Args:
        name: a source (`instructkit sources`).
        raw: the folder with the release's files.
        out: where converted datasets are kept.
        split: the split; by default the one that the paper uses.
        images: folder that media paths start from, if not below `raw` as the source expects.
        limit: stop after so many raw records.
        progress: called with the number of raw records done since the last call.

    Raises:
        UserError: unknown source or split, missing or broken file.
    """
    source = sources.source(name)
    split = split or source.split
    if split not in source.splits:
        raise UserError(f"{name} has no split {split!r}; it has {', '.join(source.splits)}")
    if images is not None and not images.is_dir():
        raise UserError(f"{images}: no such folder of images")
    reading: Reading = sources.module(name).read(raw, split)
    plan = Plan(
        source=name,
        split=split,
        layout=reading.layout,
        media_root=str((images or reading.media_root).resolve()),
        limit=limit,
        files=[_fingerprint(path, raw) for path in reading.files],
    )
    folder = out / name / split
    finished = _finished(folder, plan)
    if finished is not None:
        return Outcome(folder, finished, converted=False)
    reports = _write_shards(folder, plan, reading, progress)
    manifest = _manifest(plan, reports)
    lines = [msgspec.json.encode(reject) + b"\n" for report in reports for reject in report.rejected]
    write_atomically(folder / REJECTED, b"".join(lines))
    write_atomically(folder / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
    shutil.rmtree(folder / ".partial")
    return Outcome(folder, manifest, converted=True)


def convert_records(reading: Reading, records: list[RawRecord]) -> tuple[list[Example], list[Rejected]]:
    """Convert raw records; those that do not fit come back with the reason."""
    examples: list[Example] = []
    rejected: list[Rejected] = []
    for record in records:
        try:
            examples.extend(reading.convert(record))
        except (Reject, msgspec.DecodeError) as error:
            rejected.append(Rejected(record.file, record.key, str(error)))
    return examples, rejected


def _write_shards(folder: Path, plan: Plan, reading: Reading, progress: Progress) -> list[ShardReport]:
    partial = _start(folder, plan)
    reports = []
    for number, records in enumerate(_batches(reading, plan)):
        report_file = partial / f"shard-{number:05}.json"
        if report_file.exists():
            report = msgspec.json.decode(report_file.read_bytes(), type=ShardReport)
        else:
            examples, rejected = convert_records(reading, records)
            write_shard(folder / f"shard-{number:05}.parquet", examples)
            report = ShardReport(len(records), len(examples), rejected)
            write_atomically(report_file, msgspec.json.encode(report))
        reports.append(report)
        progress(len(records))
    return reports


def _batches(reading: Reading, plan: Plan) -> Iterator[list[RawRecord]]:
    records = islice(reading.records, plan.limit)
    while batch := list(islice(records, plan.shard_records)):
        yield batch


def _start(folder: Path, plan: Plan) -> Path:
    """Make the folder ready: keep shards of the same plan, remove everything else of an earlier conversion."""
    partial = folder / ".partial"
    plan_file = partial / "plan.json"
    encoded = msgspec.json.encode(plan)
    if not plan_file.exists() or plan_file.read_bytes() != encoded:
        if folder.exists():
            for path in [folder / MANIFEST, folder / REJECTED, *folder.glob("shard-*")]:
                path.unlink(missing_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_atomically(plan_file, encoded)
    return partial


def _finished(folder: Path, plan: Plan) -> Manifest | None:
    """The manifest in the folder, if it was made from the same plan and is complete."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except msgspec.DecodeError:
        return None
    same = all(
        getattr(manifest, name) == getattr(plan, name)
        for name in ("source", "split", "layout", "media_root", "limit", "files", "format", "instructkit")
    )
    return manifest if same and all((folder / shard).is_file() for shard in manifest.shards) else None


def _manifest(plan: Plan, reports: list[ShardReport]) -> Manifest:
    source = sources.source(plan.source)
    return Manifest(
        source=plan.source,
        split=plan.split,
        task=source.task,
        role=source.role,
        layout=plan.layout,
        media_root=plan.media_root,
        limit=plan.limit,
        examples=sum(report.examples for report in reports),
        records=sum(report.records for report in reports),
        rejected=sum(len(report.rejected) for report in reports),
        published=source.splits[plan.split].published,
        shards={f"shard-{number:05}.parquet": report.examples for number, report in enumerate(reports)},
        files=plan.files,
        instructkit=plan.instructkit,
    )


def _fingerprint(path: Path, raw: Path) -> SourceFile:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    name = path.relative_to(raw).as_posix() if path.is_relative_to(raw) else path.as_posix()
    return SourceFile(path=name, bytes=path.stat().st_size, sha256=digest.hexdigest())
