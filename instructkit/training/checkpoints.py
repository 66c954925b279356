"""Checkpoints: DeepSpeed's files in a folder that gets its name when it is whole.

A checkpoint holds what training changes (weights that are trained, optimizer state, the step) and nothing frozen.
`complete.json` lists every file with its size and checksum; a folder without it, or with a file that differs, is torn
and the one before it is used. All ranks write into one folder, so several machines need a shared file system.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from instructkit.errors import UserError
from instructkit.files import read_json, writing
from instructkit.runs.waiting import meet, on_first_rank

COMPLETE = "complete.json"
_STATES = (ZeroStageEnum, LossScaler, DynamicLossScaler, fragment_address)
"""What DeepSpeed puts into its states beside tensors and plain values."""
_LENGTH = "settings.training.max_steps"
_SPLIT = ("ranks", "settings.training.accumulation")
"""How a global batch is cut: its loss does not depend on it."""
_OWN = "settings.training.deepspeed"
_FOLLOWING = (
    f"{_OWN}.scheduler.params.total_num_steps",
    f"{_OWN}.gradient_accumulation_steps",
    f"{_OWN}.train_micro_batch_size_per_gpu",
)
"""Keys of the user's DeepSpeed file that follow from these; `users_settings` has checked that they do."""
_PIECE = 1 << 24
_NAME = re.compile(r"step-\d{8,}")


class _Complete(msgspec.Struct):
    """What `complete.json` holds."""

    step: int
    facts: dict[str, Any]
    progress: dict[str, Any]
    best: int | None
    files: dict[str, tuple[int, int]]


class Difference(NamedTuple):
    """A fact in which a checkpoint and the run that goes on from it differ."""

    name: str
    saved: Any
    now: Any


def save_checkpoint(
    engine: Any,
    root: Path,
    step: int,
    facts: dict[str, Any],
    keep: int,
    progress: dict[str, Any] | None = None,
    best: int | None = None,
) -> Path:
    """Write a checkpoint behind `step` steps; call on every rank.

    Args:
        engine: the DeepSpeed engine.
        root: folder of the run's checkpoints.
        step: number of steps done.
        facts: what a run that goes on must agree with, such as the settings.
        keep: so many checkpoints are left, and the best.
        progress: what a run that goes on must know beside the engine's state.
        best: step of the best checkpoint so far, which stays as long as this one does.

    Raises:
        UserError: the disk refuses; the checkpoints before it stay.
    """
    aside = root / f".step-{step:08}.partial"
    folder = checkpoint_folder(root, step)

    def begin() -> None:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)

    def finish() -> None:
        files = {str(p.relative_to(aside)): _settle(p) for p in sorted(aside.rglob("*")) if p.is_file()}
        content = {"step": step, "facts": facts, "progress": progress or {}, "best": best, "files": files}
        (aside / COMPLETE).write_text(json.dumps(content, indent=1))
        _settle(aside / COMPLETE)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(aside, folder)
        _remove_old(root, keep)

    try:
        with writing(folder):
            on_first_rank(begin)
            engine.save_checkpoint(str(aside), tag="state", save_latest=False, exclude_frozen_parameters=True)
            meet()
            on_first_rank(finish)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)  # on a full disk it would be in the way of what is written next
        raise
    return folder


def checkpoint_folder(root: Path, step: int) -> Path:
    """Where the checkpoint behind so many steps lies."""
    return root / f"step-{step:08}"


def last_checkpoint(root: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is whole, as the first rank sees it; torn ones are named in a line."""
    return on_first_rank(lambda: _newest_whole(root, say))


def torn(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None if it is whole."""
    try:
        listed = _read_complete(folder).files
    except UserError:
        return f"no readable {COMPLETE}"
    if not listed:
        return f"{COMPLETE} lists no files"
    for name, (size, checksum) in listed.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return f"{name} is missing or cut off"
        if _checksum(path) != checksum:
            return f"{name} is not what was written (its checksum differs)"
    return None


def foreign(folder: Path) -> str | None:
    """What a checkpoint's states hold that DeepSpeed does not write, or None if nothing.

    DeepSpeed unpickles its states, which runs whatever code stands in them. Here they are read first by torch's reader
    for tensors and plain values, which makes objects of `_STATES` and no others.
    """
    for path in sorted(folder.rglob("*.pt")):
        try:
            with torch.serialization.safe_globals(list(_STATES)):
                torch.load(path, map_location="meta", weights_only=True)
        except pickle.UnpicklingError as error:
            named = re.search(r"GLOBAL ([\w.]+)", str(error))
            return f"{path.relative_to(folder)} holds {named[1] if named else 'objects'}, which no state has"
        except (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
            return f"{path.relative_to(folder)} cannot be read ({' '.join(str(error).split())[:200]})"
    return None


def load_checkpoint(
    engine: Any, folder: Path, facts: dict[str, Any], say: Callable[[str], None]
) -> tuple[int, dict[str, Any]]:
    """Load a checkpoint into the engine; returns the number of steps done and the `progress` it was saved with.

    A run may go on with more steps, with batches cut otherwise and, where each rank has the whole state (ZeRO 0), on
    another number of ranks.

    Args:
        engine: the DeepSpeed engine.
        folder: of the checkpoint.
        facts: of the run, as `save_checkpoint` takes them.
        say: takes a line for each difference that is allowed.

    Raises:
        UserError: the checkpoint is of a run with other settings, or holds more than DeepSpeed writes.
    """
    saved = _read_complete(folder)
    every = _differences(saved.facts, json.loads(json.dumps(facts)))
    differences = [each for each in every if each.name not in _FOLLOWING]
    _check(folder, differences, engine.zero_optimization_stage())
    for name, before, now in differences:
        say(f"resume    {name.rpartition('.')[2]} was {before} and is {now}: {_meaning(name)}")
    bad = on_first_rank(lambda: foreign(folder))
    if bad is not None:
        raise UserError(f"{folder}: {bad}; it could run code, so it is not loaded: go on from folders you wrote")
    loaded, _ = engine.load_checkpoint(str(folder), tag="state", load_module_strict=False)
    if loaded is None:
        raise UserError(f"{folder}: DeepSpeed finds no checkpoint in it; remove it to use the one before")
    return saved.step, saved.progress


def _check(folder: Path, differences: Sequence[Difference], stage: int) -> None:
    """Refuse what a run may not change when it goes on."""
    refused = [each for each in differences if not _allowed(each)]
    if refused:
        listed = "; ".join(f"{name} = {saved}, now {now}" for name, saved, now in refused)
        longer = " (max_steps may only grow)" if any(each.name == _LENGTH for each in refused) else ""
        raise UserError(
            f"{folder}: written with {listed}; go on with the same settings{longer}, or start anew without resume=true"
        )
    for name, saved, now in differences:
        if name == "ranks" and stage:
            raise UserError(
                f"{folder}: written by {saved} rank{'s' if saved > 1 else ''} under ZeRO {stage}, which shards the "
                f"optimizer's state over the ranks, and this run has {now}; go on with {saved} (deepspeed "
                f"--num_accelerators {saved}), or start anew without resume=true"
            )


def _allowed(difference: Difference) -> bool:
    name, saved, now = difference
    return name in _SPLIT or (name == _LENGTH and now > saved)


def _meaning(name: str) -> str:
    if name == _LENGTH:
        return "the learning rate follows the longer run's schedule from here on"
    return "losses differ by rounding and, where the model has dropout, by its draws"


def load_best(engine: Any, root: Path, step: int, facts: dict[str, Any]) -> None:
    """Load the best checkpoint in place of the last weights; call on every rank.

    Raises:
        UserError: it is damaged.
    """
    folder = checkpoint_folder(root, step)
    damage = on_first_rank(lambda: torn(folder))
    if damage is not None:
        raise UserError(
            f"{folder}, the best checkpoint: {damage}; resume=true evaluation.every=0 takes the last step's model"
        )
    load_checkpoint(engine, folder, facts, lambda line: None)  # what differs was said when the run went on


def _remove_old(root: Path, keep: int) -> None:
    """Leave the newest checkpoints, and those that one of them holds for the best."""
    folders = _checkpoints(root)
    best = {_best(folder) for folder in folders[-keep:]}
    for old in folders[:-keep]:
        if int(old.name.removeprefix("step-")) not in best:
            shutil.rmtree(old)


def _best(folder: Path) -> int | None:
    try:
        return _read_complete(folder).best
    except UserError:  # torn: said when it is to be loaded
        return None


def _newest_whole(root: Path, say: Callable[[str], None]) -> Path | None:
    for folder in reversed(_checkpoints(root)):
        damage = torn(folder)
        if damage is None:
            return folder
        say(f"resume    {folder}: {damage}; the checkpoint before it is used")
    return None


def _checkpoints(root: Path) -> list[Path]:
    """The folders of checkpoints, by their steps; what else lies there is none of a run's business."""
    return sorted(path for path in root.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir())


def _read_complete(folder: Path) -> _Complete:
    found: _Complete = read_json(folder / COMPLETE, _Complete, "remove the checkpoint to go on from the one before")
    return found


def _settle(path: Path) -> tuple[int, int]:
    """Wait until a file is on the disk, so that a power cut cannot empty it; its size and checksum."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path.stat().st_size, _checksum(path)


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            value = zlib.crc32(piece, value)
    return value


def _differences(saved: Any, now: Any, name: str = "") -> Iterator[Difference]:
    """Leaves of two trees of settings that differ, with keys joined by points."""
    if isinstance(saved, dict) and isinstance(now, dict):
        for key in [*saved, *(key for key in now if key not in saved)]:
            yield from _differences(saved.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif saved != now:
        yield Difference(name, saved, now)
