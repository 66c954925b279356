"""Converted datasets on disk: Parquet shards beside a manifest, read as a sequence of examples.

A converted dataset is a folder

    <out>/<source>/<split>/shard-00000.parquet ...   rows of `SCHEMA`, in the order of the release
                           manifest.json             what was read, what came out (`Manifest`)
                           rejected.jsonl            one line a record that did not fit: file, record, reason

which `datasets.load_dataset("parquet", data_dir=...)` reads as well as `load_examples`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from operator import attrgetter
from pathlib import Path
from typing import Any, overload

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from instructkit.data.examples import Example, Turn
from instructkit.errors import UserError
from instructkit.files import damage

_log = logging.getLogger(__name__)

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
REJECTED = "rejected.jsonl"
_STRINGS = pa.list_(pa.string())

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        ("images", _STRINGS),
        ("video", pa.string()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("question", pa.string()),
        ("answers", _STRINGS),
        ("choices", _STRINGS),
        ("choice", pa.int32()),
        ("relevance", pa.list_(pa.float32())),
        ("context", pa.string()),
        ("lecture", pa.string()),
        ("rationales", _STRINGS),
        ("ocr_tokens", _STRINGS),
        ("references", _STRINGS),
        ("history", pa.list_(pa.struct([("question", pa.string()), ("answer", pa.string())]))),
        ("statement", pa.string()),
        ("meta", pa.list_(pa.struct([("key", pa.string()), ("value", pa.string())]))),
    ]
)
"""Arrow schema of a shard: the fields of `Example`, `meta` as key/value pairs."""


class SourceFile(msgspec.Struct):
    """A file of the release that a conversion read."""

    path: str
    bytes: int
    sha256: str


class Manifest(msgspec.Struct, kw_only=True):
    """What a folder of examples was made from and what it holds; written last, so its presence means complete.

    Attributes:
        source: name of the source module.
        split: name of the split, as `instructkit sources NAME` lists it.
        task: task group (one of `TASKS`).
        role: `held-in`, `held-out` or `extra`.
        layout: which of the release's layouts was found.
        media_root: absolute folder that `images` and `video` paths start from.
        limit: `--limit` of the conversion, None for everything.
        examples: number of rows over all shards.
        records: number of raw records read.
        rejected: number of raw records in `rejected.jsonl`.
        published: number of examples that the authors state for this split, None where they state none.
        media: totals of `--check-images`: checked, missing, broken; None without the check.
        miniature: whether the release is a made-up one, whose count says nothing about the published one.
        shards: name and rows of each shard.
        checksums: SHA-256 of each shard and of the list of rejects, as they were written; empty in manifests from
            before there were checksums.
        files: what was read.
        notes: what the source found worth saying about the release; reports show it at the scores.
        code: digest of the source's module and what it imports (`instructkit.conversion.code_digest`).
        format: `FORMAT_VERSION` at the time of writing.
        instructkit: version of the toolkit.
    """

    source: str
    split: str
    task: str
    role: str
    layout: str
    media_root: str
    limit: int | None
    examples: int
    records: int
    rejected: int
    published: int | None
    media: dict[str, int] | None = None
    miniature: bool = False
    shards: dict[str, int]
    checksums: dict[str, str] = {}
    files: list[SourceFile]
    notes: list[str] = []
    code: str = ""
    format: int = FORMAT_VERSION
    instructkit: str = ""


def to_table(examples: Sequence[Example]) -> pa.Table:
    """Lay examples out as an Arrow table of `SCHEMA`."""
    if not examples:
        return SCHEMA.empty_table()
    columns = zip(*map(_values_of, examples), strict=True)
    return pa.Table.from_arrays(list(map(_column, SCHEMA, columns)), schema=SCHEMA)


def _column(field: pa.Field, values: Sequence[Any]) -> pa.Array:
    """One column; lists are laid end to end, which is twice as fast as letting Arrow look into each."""
    if not pa.types.is_list(field.type):
        return pa.array(values, field.type)
    ends = np.zeros(len(values) + 1, np.int32)
    np.cumsum(np.fromiter(map(len, values), np.int32, len(values)), out=ends[1:])
    flat = list(chain.from_iterable(values))
    if field.name == "history":
        parts = [pa.array([turn.question for turn in flat]), pa.array([turn.answer for turn in flat])]
        items = pa.StructArray.from_arrays(_strings(parts), ["question", "answer"])
    elif field.name == "meta":
        parts = [pa.array(flat), pa.array(list(chain.from_iterable(meta.values() for meta in values)))]
        items = pa.StructArray.from_arrays(_strings(parts), ["key", "value"])
    else:
        items = pa.array(flat, field.type.value_type)
    return pa.ListArray.from_arrays(pa.array(ends), items)


def _strings(arrays: Iterable[pa.Array]) -> list[pa.Array]:
    return [array.cast(pa.string()) for array in arrays]


ROW_GROUP = 4096


def write_shard(path: Path, examples: Iterable[Example]) -> int:
    """Write one Parquet shard, a row group at a time; the file appears under its name only when it is whole.

    Returns:
        the number of examples.
    """
    partial = path.with_suffix(".tmp")
    rows, stream = 0, iter(examples)
    with pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer:
        while group := list(islice(stream, ROW_GROUP)):
            writer.write_table(to_table(group))
            rows += len(group)
    os.replace(partial, path)
    return rows


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of one converted split.

    Raises:
        UserError: there is none, or it was written in another format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder}: no {MANIFEST} here; convert a dataset into it first (instructkit convert)")
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a manifest of instructkit ({error}); convert the dataset again") from error
    if manifest.format != FORMAT_VERSION:
        raise UserError(
            f"{path}: format {manifest.format}, this version reads {FORMAT_VERSION}; convert the dataset again"
        )
    return manifest


def find_datasets(folder: Path) -> list[Path]:
    """All converted splits in and below a folder, sorted by path.

    Raises:
        UserError: the folder is missing or holds none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found = sorted(path.parent for path in folder.rglob(MANIFEST))
    if not found:
        raise UserError(f"{folder}: no converted dataset in or below it; run instructkit convert first")
    return found


class Examples(Sequence[Example]):
    """Random access to a converted split, memory-mapped through `datasets`.

    Each shard must have the SHA-256 that the manifest states. It is read in full for that, or remembered from an
    earlier reading of the same file (`instructkit.files`).

    Args:
        folder: a folder with a manifest.

    Raises:
        UserError: no manifest, or a shard that it lists is missing, damaged or has another number of rows.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        _check_shards(folder, self.manifest)
        self.rows = _open_rows(folder, self.manifest)

    @property
    def name(self) -> str:
        """Name of the source."""
        return self.manifest.source

    def __len__(self) -> int:
        return self.manifest.examples

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return self.take(range(*index.indices(len(self))))
        return self.take([index])[0]

    def __iter__(self) -> Iterator[Example]:
        for start in range(0, len(self), 1024):
            yield from self.take(range(start, min(start + 1024, len(self))))

    def take(self, indices: Iterable[int]) -> list[Example]:
        """The examples at the given positions, read in one go."""
        columns = self.rows[list(indices)]
        names = list(columns)
        return [_example(dict(zip(names, row, strict=True))) for row in zip(*columns.values(), strict=True)]

    def media_path(self, relative: str, root: Path | None = None) -> Path:
        """Where a path of `images` or `video` lies on this machine; `root` replaces the manifest's `media_root`."""
        return (root or Path(self.manifest.media_root)) / relative


def _check_shards(folder: Path, manifest: Manifest) -> None:
    unchecked = [name for name in manifest.shards if name not in manifest.checksums]
    if unchecked:
        _log.warning(
            "%s: states no checksum of %d shards, so nothing shows whether they are damaged; convert the dataset again",
            folder / MANIFEST,
            len(unchecked),
        )
    checksums = {name: manifest.checksums.get(name, "") for name in manifest.shards if name not in unchecked}
    wrong = damage(folder, checksums) + [
        f"{folder / name}: missing" for name in unchecked if not (folder / name).is_file()
    ]
    if wrong:
        others = f" ({len(wrong) - 1} more shards, too)" if len(wrong) > 1 else ""
        raise UserError(f"{wrong[0]}{others}; convert the dataset again: instructkit convert makes it again")


def _open_rows(folder: Path, manifest: Manifest) -> Any:
    """The rows as a `datasets.Dataset`."""
    import datasets

    filled = [str(folder / name) for name, rows in manifest.shards.items() if rows]
    if not filled:
        rows = datasets.Dataset(SCHEMA.empty_table())
    else:
        datasets.disable_progress_bars()
        try:
            rows = datasets.Dataset.from_parquet(filled)
        except (OSError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{folder}: the shards cannot be read ({reason}); convert the dataset again") from error
        finally:
            datasets.enable_progress_bars()
    if len(rows) != manifest.examples:
        raise UserError(
            f"{folder}: the shards hold {len(rows):,} examples, {MANIFEST} says {manifest.examples:,}; "
            "convert the dataset again"
        )
    return rows


def convert_command(split: str, root: Path | str, images: bool = False) -> str:
    """The command that converts a split, `<source>/<split>`, for messages; RELEASE and FOLDER are left to the user."""
    source, _, name = split.partition("/")
    return f"instructkit convert {source} --split {name} --raw RELEASE {'--images FOLDER ' * images}--out {root}"


def not_converted(split: str, root: Path | str) -> str:
    """The message about a split, `<source>/<split>`, that is not below `root` and must be."""
    return f"{split} is not converted in {root}: {convert_command(split, root)}"


def load_examples(folder: Path) -> Examples:
    """Open one converted split (a folder with a manifest)."""
    return Examples(folder)


def _example(row: dict[str, Any]) -> Example:
    row["meta"] = {pair["key"]: pair["value"] for pair in row["meta"] or []}
    row["history"] = [Turn(**turn) for turn in row["history"] or []]
    return Example(**row)


_values_of = attrgetter(*SCHEMA.names)
