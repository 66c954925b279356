"""The media files that a converted split names: whether they are there, and what tells that they were replaced.

Files are asked for their size and time of change, never opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from instructkit.data.dataset import read_manifest
from instructkit.data.media import located
from instructkit.data.readers import nearby
from instructkit.errors import UserError

LOOKED = 200
"""Files of a split that `look` asks for, out of so many shards at most:"""
LOOKED_SHARDS = 8
WATCHED_EXAMPLES = 1_000_000
"""Of a split with more examples `stamps` looks at no file: asking for millions of files takes minutes."""
_THREADS = 8


Stamps = dict[str, tuple[int, int] | None]


class Looked(NamedTuple):
    """What a look at some of a split's media files came to.

    Attributes:
        root: the split's media root.
        looked: number of files asked for.
        missing: how many of them are not there.
        first: path below `root` of the first that is not there; empty where none is missing.
    """

    root: Path
    looked: int
    missing: int
    first: str

    @property
    def none_there(self) -> bool:
        """Whether not a single one is there."""
        return 0 < self.looked == self.missing

    def line(self) -> str:
        """What is missing, where it was looked for, and what to do; empty where nothing is missing."""
        if not self.missing:
            return ""
        if not self.none_there:
            share = f"{self.missing:,} of {self.looked:,} media files that were looked at are not there"
            return f"{share}, such as {self.root / self.first}; convert with --check-images to leave their examples out"
        where = f"none of {self.looked:,} media files that were looked at is there: looked for {self.root / self.first}"
        near = [folder for folder in nearby(self.root) if (folder / self.first).is_file()] if self.root.is_dir() else []
        return f"{where}; name their folder with --images" + (f", which seems to be {near[0]}" if near else "")


def look(folder: Path, most: int | None = None) -> Looked:
    """Ask for some hundred media files of a converted split.

    Args:
        folder: of the split.
        most: only those of so many first examples; by default files of several shards.

    Raises:
        UserError: the folder holds no converted split.
    """
    manifest = read_manifest(folder)
    shards = [name for name, rows in manifest.shards.items() if rows]
    shards = shards[:1] if most is not None else shards[:: -(-len(shards) // LOOKED_SHARDS) or 1]
    paths: list[str] = []
    for name in shards:
        with pq.ParquetFile(folder / name) as file:
            rows = file.read_row_group(0, columns=["images", "video"])
        found = _paths(rows.slice(0, most))
        paths += found[:: -(-len(found) * len(shards) // LOOKED) or 1]
    root = Path(manifest.media_root)
    missing = [path for path, stamp in _stamps(root, paths) if stamp is None]
    return Looked(root, len(paths), len(missing), missing[0] if missing else "")


def stamps(folder: Path, say: Callable[[str], None] = lambda line: None) -> Stamps:
    """Size and time of change (ns) of each media file that a converted split names, by its path below the media root.

    Files that are not there have None.

    Args:
        folder: of the split.
        say: takes a line where the split has more than `WATCHED_EXAMPLES`, whose files are not looked at.

    Raises:
        UserError: the folder holds no converted split.
    """
    manifest = read_manifest(folder)
    if manifest.examples > WATCHED_EXAMPLES:
        name = f"{manifest.source}/{manifest.split}"
        say(f"data      {name}: {manifest.examples:,} examples, so nobody looks whether media files were replaced")
        return {}
    paths: dict[str, None] = {}
    for name, rows in manifest.shards.items():
        if rows:
            paths |= dict.fromkeys(_paths(pq.read_table(folder / name, columns=["images", "video"])))
    return dict(_stamps(Path(manifest.media_root), list(paths)))


def digest(folder: Path, say: Callable[[str], None] = lambda line: None) -> str:
    """Checksum over what `stamps` gives for the same arguments."""
    whole = hashlib.sha256()
    for path, stamp in stamps(folder, say).items():
        whole.update(f"{path}\0{stamp}\n".encode())
    return whole.hexdigest()


def _paths(rows: pa.Table) -> list[str]:
    """The distinct media paths of some examples, in order."""
    columns = [pc.list_flatten(rows["images"]), pc.drop_null(rows["video"])]
    return list(dict.fromkeys(path for column in columns for path in column.to_pylist()))


def _stamps(root: Path, paths: list[str]) -> Iterator[tuple[str, tuple[int, int] | None]]:
    """Each path with size and time of change of its file (ns); None for a file that is not there."""
    with ThreadPoolExecutor(_THREADS) as pool:  # on network disks the time is spent on waiting
        yield from zip(paths, pool.map(lambda path: _stamp(root / path), paths, chunksize=64), strict=True)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        facts = located(path).stat()
    except (OSError, UserError):
        return None
    return facts.st_size, facts.st_mtime_ns
