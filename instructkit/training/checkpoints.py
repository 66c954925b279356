"""Checkpoints: DeepSpeed's files in a folder that gets its name when it is whole.

A checkpoint holds what training changes (weights that are trained, optimizer state, the step) and nothing frozen.
`complete.json` lists every file with its size; a folder without it, or with a file of another size, is torn and the
one before it is used.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from instructkit.errors import UserError

COMPLETE = "complete.json"


def save_checkpoint(engine: Any, root: Path, step: int, facts: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint behind `step` steps; call on every rank.

    Args:
        engine: the DeepSpeed engine.
        root: folder of the run's checkpoints.
        step: number of steps done.
        facts: what a run that goes on must agree with, such as the settings.
        keep: so many checkpoints are left.
    """
    aside = root / f".step-{step:08}.partial"
    folder = root / f"step-{step:08}"
    first = dist.get_rank() == 0
    if first:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    dist.barrier()
    engine.save_checkpoint(str(aside), tag="state", save_latest=False, exclude_frozen_parameters=True)
    dist.barrier()
    if first:
        files = {str(p.relative_to(aside)): p.stat().st_size for p in sorted(aside.rglob("*")) if p.is_file()}
        (aside / COMPLETE).write_text(json.dumps({"step": step, "facts": facts, "files": files}, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(aside, folder)
        for old in sorted(root.glob("step-*"))[:-keep]:
            shutil.rmtree(old)
    dist.barrier()
    return folder


def last_checkpoint(root: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is whole; torn ones are named in a line."""
    for folder in sorted(root.glob("step-*"), reverse=True):
        damage = torn(folder)
        if damage is None:
            return folder
        say(f"{folder}: {damage}; the checkpoint before it is used")
    return None


def torn(folder: Path) -> str | None:
    """What is missing from a checkpoint, or None if it is whole."""
    try:
        listed = json.loads((folder / COMPLETE).read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"no readable {COMPLETE} ({error.__class__.__name__})"
    for name, size in listed.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return f"{name} is missing or cut off"
    return None


def load_checkpoint(engine: Any, folder: Path, facts: dict[str, Any]) -> int:
    """Load a checkpoint into the engine and return the number of steps done.

    Raises:
        UserError: the checkpoint is of a run with other settings.
    """
    saved = json.loads((folder / COMPLETE).read_text())
    for name, value in facts.items():
        if saved["facts"].get(name) != value:
            raise UserError(
                f"{folder}: written with {name} = {saved['facts'].get(name)}, now {value}; go on with the same "
                f"settings, or start anew without resume=true"
            )
    loaded, _ = engine.load_checkpoint(str(folder), tag="state", load_module_strict=False)
    if loaded is None:
        raise UserError(f"{folder}: DeepSpeed finds no checkpoint in it; remove it to use the one before")
    return int(saved["step"])
