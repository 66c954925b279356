"""Files: written whole or not at all, and known again by their SHA-256.

A SHA-256 is read in full or remembered from an earlier reading, in the user's cache folder (`$XDG_CACHE_HOME` or
`~/.cache`, there `instructkit/checksums`), one file a folder of data, by size, times and inode. A file that was written
in the last seconds is not remembered: a later write might leave it the same time.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from instructkit.errors import UserError

BLOCK = 1 << 20
_SETTLED_SECONDS = 2
_log = logging.getLogger(__name__)

Stamp = tuple[int, int, int, int]
"""Size, time of the last write and of the last change (ns), inode."""
_Known = dict[str, tuple[Stamp, str]]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def damage(folder: Path, checksums: Mapping[str, str], *, anew: bool = False) -> list[str]:
    """What is wrong with files: a phrase for each that is missing, cannot be read or has another SHA-256.

    Args:
        folder: where the files are.
        checksums: SHA-256 by file name.
        anew: read every file, whatever is remembered.
    """
    memory = _memory(folder)
    known = _recall(memory) if memory is not None else {}
    found: _Known = {}
    wrong = []
    for name, expected in checksums.items():
        path = folder / name
        try:
            stamp = _stamp(path)
            remembered = known.get(name)
            fresh = anew or remembered is None or remembered[0] != stamp
            actual = sha256_of(path) if fresh or remembered is None else remembered[1]
        except FileNotFoundError:
            wrong.append(f"{path}: missing")
            continue
        except OSError as error:
            wrong.append(f"{path}: cannot be read ({error.strerror})")
            continue
        if max(stamp[1:3]) < (time.time() - _SETTLED_SECONDS) * 1e9 and _stamp(path) == stamp:
            found[name] = (stamp, actual)
        if actual != expected:
            wrong.append(f"{path}: damaged, its SHA-256 is not that of what was written")
    if memory is not None and any(known.get(name) != value for name, value in found.items()):
        _remember(memory, known | found)
    return wrong


def _stamp(path: Path) -> Stamp:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino


def _memory(folder: Path) -> Path | None:
    """The file that remembers what was read in a folder; None for a user without a home."""
    home = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if not os.path.isabs(home):
        return None
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
    return Path(home) / "instructkit" / "checksums" / f"{name}.json"


def _recall(memory: Path) -> _Known:
    try:
        return msgspec.json.decode(memory.read_bytes(), type=_Known)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return {}  # nothing is remembered: everything is read


def _remember(memory: Path, known: _Known) -> None:
    partial = memory.with_name(f"{memory.name}.{os.getpid()}.tmp")
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(msgspec.json.encode(known))
        os.replace(partial, memory)
    except OSError as error:
        _log.warning("%s: cannot be written (%s), so checksums are read again next time", memory, error.strerror)


def write_atomically(path: Path, text: str | bytes) -> None:
    """Write a small file so that a reader sees the old one or the new one, never half of it."""
    partial = path.with_name(path.name + ".tmp")
    partial.write_bytes(text.encode() if isinstance(text, str) else text)
    os.replace(partial, path)


def write_stream(path: Path, parts: Iterable[str]) -> None:
    """Write a text file part by part; it appears under its name only when it is whole.

    Raises:
        UserError: the file cannot be written.
    """
    partial = path.with_name(path.name + ".tmp")
    with writing(path):
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(parts)
        os.replace(partial, path)


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn what the disk refuses into a `UserError` that names what was to be written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{place}: cannot be written ({error.strerror or error})") from error
