"""One run at a time in an output folder, and the earlier run in it moves aside."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

from instructkit.errors import UserError
from instructkit.files import writing

LOCK = "lock"
_FILES = ("config.yaml", "run.log", "log.jsonl", "not_finite.json")
_FOLDERS = ("checkpoints", "tokenizers", "model", "evaluation", "watch", "report", "submissions", "wandb")
PARTS = (*_FILES, *_FOLDERS)
"""What a run writes into its folder; other things there are none of its business."""
_RESULTS = ("checkpoints", "model", "evaluation", "report")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a run's folder and hold it against other runs, until this process ends in whatever way.

    Raises:
        UserError: another run holds it, or it cannot be made.
    """
    path = folder / LOCK
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise UserError(f"{folder}: {place} is a file, where a folder must be; choose another one (output=...)")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    with file:
        try:
            # A record lock, which forked workers do not inherit: they may outlive a run that was killed by seconds.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            holder = " ".join(file.read(200).split()) or "a process that does not say its name"
            raise UserError(
                f"{folder}: another run writes here ({holder}); wait for it, or choose another folder (output=...)"
            ) from error
        with writing(path):
            file.truncate(0)
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
            file.flush()
        yield


@contextmanager
def locked_for_all(folder: Path) -> Iterator[None]:
    """`locked`, by the first rank for all of them; call on every rank.

    Raises:
        UserError: on every rank, as `locked` does.
    """
    from instructkit.runs.waiting import on_first_rank

    with ExitStack() as stack:
        on_first_rank(lambda: stack.enter_context(locked(folder)))
        yield


def check_places(folder: Path) -> None:
    """Look whether everything in a run's folder is what the run will write there.

    Raises:
        UserError: a folder lies in a file's place, or the reverse.
    """
    for name in (*_FILES, *_FOLDERS):
        path = folder / name
        if path.exists() and path.is_dir() != (name in _FOLDERS):
            there, wanted = ("folder", "file") if name in _FILES else ("file", "folder")
            raise UserError(f"{path}: a {there} lies where a run has a {wanted}; move it away (or set output=...)")


def move_aside(folder: Path) -> Path | None:
    """Move what an earlier run left in a folder to `<folder>.1` or the next free number; None if there is none.

    Of a run that ended before its first step only the words remain, and a new run's are written behind them.

    Raises:
        UserError: the disk refuses.
    """
    steps = folder / "log.jsonl"
    if not any((folder / part).exists() for part in _RESULTS) and not (steps.is_file() and steps.stat().st_size):
        return None
    whole = folder.absolute()
    aside = next(path for number in count(1) if not (path := whole.with_name(f"{whole.name}.{number}")).exists())
    with writing(aside):
        aside.mkdir()
        for part in PARTS:
            if (folder / part).exists():
                os.replace(folder / part, aside / part)
    return folder.with_name(aside.name) if folder.name else aside
