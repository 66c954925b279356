"""Runs of the loop with the toy model; started by DeepSpeed's launcher with the folder that the runs write to.

Each run leaves `facts.json`: the steps it took, the weights behind each, what it said and which checkpoints it kept.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist

from instructkit.config.settings import DataConfig, EvaluationConfig, RunConfig
from instructkit.runs.ending import Stopped
from instructkit.runs.log import RunLog
from instructkit.runs.ranks import start_ranks
from instructkit.runs.run import Run
from instructkit.training.best import Best
from instructkit.training.data import Batch
from instructkit.training.engine import Engine
from instructkit.training.loop import Loop
from tests.training.toy import Toy, ToyObjective, batches, config

VALIDATION = {"best": [3.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0], "patience": [3.0, 1.0, 2.0, 2.0]}
"""What the evaluations behind the steps of a run find."""


class ToyData:
    """The toy's micro-batches, a position each."""

    names = ("even", "odd")
    samples_per_group = 1.0

    def __init__(self, accumulation: int, rank: int, world: int) -> None:
        self._split = (accumulation, rank, world)

    def loader(self, start: int, stop: int, workers: int = 0) -> Iterator[Batch]:
        accumulation, rank, world = self._split
        for position in range(start, stop):
            step, part = divmod(position, accumulation)
            yield batches(step, accumulation, rank, world)[part]


@dataclass
class ToyRun(Run[RunConfig]):
    """A run that remembers what it said, and that something may ask to stop."""

    stop_behind: int | None = None
    said: list[str] = field(default_factory=list)
    asked: int = 0

    def say(self, line: str) -> None:
        self.said.append(line)

    def stop_asked(self) -> bool:
        self.asked += 1
        return self.asked == self.stop_behind


def run_one(folder: Path, stop_behind: int | None = None, resume: bool = False, **changes: Any) -> None:
    rank, world = start_ranks()
    kind = folder.name.removesuffix("-resumed")
    found = VALIDATION.get(kind)
    patience = {"patience": 2} if kind == "patience" else {}
    evaluation = {"every": 1, "validation": ["toy"], **patience} if found else {}
    training = config(max_steps=7, log_every=2, **{"checkpoint_every": 3, "keep_checkpoints": 3, **changes})
    settings = RunConfig(
        output=str(folder),
        resume=resume,
        data=DataConfig(root=str(folder / "data")),
        training=training,
        evaluation=EvaluationConfig(**evaluation),
    )
    with closing(RunLog(folder, {}, "toy", active=rank == 0)) as log:
        run = ToyRun(settings, folder, rank, world, log, stop_behind)
        run.begin(anew=not resume)
        engine = Engine(Toy(), ToyObjective(), training, folder)
        best = Best(settings.evaluation, [])
        facts: dict[str, Any] = {"numbers": [], "after": {}, "ended": False}
        loop = Loop(run, engine, ToyData(training.accumulation, rank, world), best)
        try:
            for step in loop:
                facts["numbers"].append(step.number)
                facts["after"][step.number] = engine.model.weight.tolist()
                if found:
                    best.take(step.number, {"validation_loss": found[step.number - 1]})
            loop.finish()
        except Stopped:
            facts["ended"] = True
        facts["weight"] = engine.model.weight.tolist()
        facts["said"] = run.said
        kept = sorted((folder / "checkpoints").glob("step-*"))
        facts["checkpoints"] = [int(path.name.removeprefix("step-")) for path in kept]
        engine.free()
        if rank == 0:
            (folder / "facts.json").write_text(json.dumps(facts))
        dist.barrier()


def copy(source: Path, target: Path, without: int | None = None) -> Path:
    """A run as another one finds it; `without` is the step of a checkpoint that was not written yet."""
    if dist.get_rank() == 0:
        shutil.copytree(source, target)
        for path in (target / "checkpoints").glob("step-*"):
            if without is not None and int(path.name.removeprefix("step-")) >= without:
                shutil.rmtree(path)
    dist.barrier()
    return target


def main() -> None:
    """All runs, one behind the other."""
    start_ranks()
    root = Path(sys.argv[-1])
    run_one(root / "whole")
    run_one(root / "split", accumulation=2)
    run_one(copy(root / "whole", root / "resumed", without=6), resume=True)
    run_one(copy(root / "whole", root / "anew"))
    run_one(root / "best", keep_checkpoints=2)
    run_one(root / "patience")
    run_one(copy(root / "patience", root / "patience-resumed"), resume=True)
    run_one(root / "stopped", stop_behind=2)
    run_one(copy(root / "stopped", root / "stopped-resumed"), resume=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
