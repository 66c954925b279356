"""The run's log: numbers to `log.jsonl` and, where there is a key, to Weights & Biases; words to `run.log`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import msgspec
from tqdm import tqdm

from instructkit.files import write_atomically

MEASURED = frozenset({"samples_per_second", "flop_utilisation", "peak_memory_gib", "peak_gpu_memory_gib"})
"""Values that differ from run to run."""
WARNING = "warning   "
"""Begins such lines of `run.log`."""
LOSS_OF = "mean_loss/"
EACH_LOSS = "loss/"
CUT = "cut/"
_READ = {"qformer": "the Q-Former's text", "instruction": "the instruction", "answer": "the answer"}
_FEW = 3


class _Step(msgspec.Struct):
    step: int


_read_step = msgspec.json.Decoder(_Step).decode


class RunLog:
    """Where a run writes what it reached; on ranks other than the first it writes nothing.

    Args:
        folder: `log.jsonl` (numbers of steps) and `run.log` (what the console shows) are appended to in here, once it
            is opened.
        config: settings, for Weights & Biases.
        project: project there; used with WANDB_API_KEY or WANDB_MODE=offline set, None for a run that does not train.
        active: whether this is the rank that writes.
    """

    def __init__(self, folder: Path, config: dict[str, Any], project: str | None, active: bool = True) -> None:
        self._folder, self._config, self._project, self._active = folder, config, project, active
        self._path = folder / "log.jsonl"
        self._file: TextIO | None = None
        self._words: TextIO | None = None
        self._wandb: Any = None
        self._waiting: list[str] = []

    def open(self) -> None:
        """Write from here on, first the lines that were said before; on an open log it does nothing."""
        if not self._active or self._file:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a", encoding="utf-8", buffering=1)
        self._words = (self._folder / "run.log").open("a", encoding="utf-8", buffering=1)
        self._words.writelines(line + "\n" for line in self._waiting)
        if self._project and (os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") == "offline"):
            self._wandb = _start_wandb(self._folder, self._config, self._project)
            self.say(f"wandb     {self._wandb.settings.sync_dir if self._wandb.offline else self._wandb.url}")

    def metrics(self, step: int, **values: float | None) -> None:
        """Numbers of a step; those that are None are left out."""
        values = {name: value for name, value in values.items() if value is not None}
        if self._file:
            self._file.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")
        if self._wandb:
            self._wandb.log(values, step=step)

    def rewind(self, step: int) -> None:
        """Drop the lines behind a step, which a run that goes on from there writes again, and what was cut off.

        Damaged lines before it are left out as well, and counted in a line.
        """
        if self._file is None:
            return
        self._file.close()
        lines = self._path.read_bytes().splitlines(keepends=True)
        steps = [_step_of(line) for line in lines]
        kept = [line for line, its in zip(lines, steps, strict=True) if its is not None and its <= step]
        write_atomically(self._path, b"".join(kept))
        self._file = self._path.open("a", encoding="utf-8", buffering=1)
        cut_off = bool(lines) and not lines[-1].endswith(b"\n")
        if damaged := steps.count(None) - (cut_off and steps[-1] is None):
            self.say(f"resume    {self._path}: {damaged:,} damaged lines are left out")

    def warn(self, line: str) -> None:
        """A line about what the run does though nobody may want it; the report repeats it."""
        self.say(f"{WARNING}{line}")

    def say(self, line: str) -> None:
        """A line for people, on the console and in `run.log`."""
        if not self._active:
            return
        tqdm.write(line)
        if self._words:
            self._words.write(line + "\n")
        else:
            self._waiting.append(line)

    def close(self) -> None:
        """Flush and close."""
        for file in (self._file, self._words):
            if file:
                file.close()
        if self._wandb:
            self._wandb.finish()

    def __enter__(self) -> RunLog:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _start_wandb(folder: Path, config: dict[str, Any], project: str) -> Any:
    """A run of Weights & Biases that writes nothing to the console; WANDB_MODE=offline sends nothing anywhere."""
    import wandb

    quiet = wandb.Settings(silent=True, console="off")
    return wandb.init(project=project, dir=str(folder), name=folder.name, config=config, settings=quiet)


def step_line(step: int, steps: int, values: Mapping[str, float | None]) -> str:
    """The values of a training step in a line that can be read in passing; `log.jsonl` has all of them."""
    parts = [f"step {step:,}/{steps:,}", f"loss {values['mean_loss']:.4f}", f"lr {values['learning_rate']:.2e}"]
    parts.append(f"{values['samples_per_second']:.1f} samples/s")
    if "useful_token_share" in values:
        parts.append(f"{values['useful_token_share']:.0%} useful tokens")
        parts.append(f"{values['flop_utilisation']:.0%} of peak")
    parts += [f"{value:.2f} GiB" for name, value in values.items() if name.endswith("memory_gib")]
    losses = {name.removeprefix(EACH_LOSS): value for name, value in values.items() if name.startswith(EACH_LOSS)}
    if losses:
        parts.append(", ".join(f"{name} {value:.4f}" for name, value in losses.items()))
    datasets = {name.removeprefix(LOSS_OF): value for name, value in values.items() if name.startswith(LOSS_OF)}
    if 1 < len(datasets) <= _FEW:
        parts.append(", ".join(f"{name} {value:.4f}" for name, value in datasets.items()))
    for text, what in _READ.items():
        rows = sum(value or 0 for name, value in values.items() if name.startswith(f"{CUT}{text}/"))
        if rows:
            parts.append(f"{what} cut in {rows:,.0f} rows so far")
    return "  ".join(parts)


def _step_of(line: bytes) -> int | None:
    """Step of a line of the log; None of one that is damaged or was cut off."""
    try:
        return _read_step(line).step if line.endswith(b"\n") else None
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
