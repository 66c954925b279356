"""A model of two weights with an objective of two losses: what the engine and the loop do without any model of ours.

Started with a folder; the first rank writes what each case reached to `toy-<ranks>.json`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from instructkit.config.settings import TrainingConfig
from instructkit.runs.ranks import start_ranks
from instructkit.training.data import Batch
from instructkit.training.engine import Engine
from instructkit.training.objectives import Loss, LossSum, Work

ROWS = 8
"""In a step, over all ranks and micro-batches."""
NOTHING = -1.0
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "split": {"accumulation": 2},
    "zero2": {"zero_stage": 2},
    "zero2-split": {"zero_stage": 2, "accumulation": 2},
    "zero3": {"zero_stage": 3},
}


class Toy(nn.Module):
    """Two numbers in, one out."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -0.25]))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class ToyObjective:
    """Squared distance to a row's target, and to each of its words, of which rows have one to four."""

    losses: Mapping[str, Loss] = {"fit": Loss(unit="rows"), "words": Loss(weight=0.5, unit="words")}
    contrastive = False

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        words = batch.inputs["words"]
        return {"fit": torch.ones(len(words), dtype=torch.long), "words": (words != NOTHING).sum(1)}

    def work(self, model: Any) -> Callable[[Batch], Work] | None:
        return None

    def __call__(self, model: Callable[..., Any], batch: Batch) -> dict[str, LossSum]:
        said = model(x=batch.inputs["x"])
        words = batch.inputs["words"]
        fit = (said - batch.inputs["y"]).square()
        far = ((said[:, None] - words).square() * (words != NOTHING)).sum(1)
        counts = {name: int(count.sum()) for name, count in self.counts(batch).items()}
        return {
            "fit": LossSum(fit.sum(), counts["fit"], fit.detach()),
            "words": LossSum(far.sum(), counts["words"], far.detach()),
        }


def rows(numbers: list[int]) -> dict[str, Tensor]:
    """Rows of the data by their numbers."""
    at = torch.tensor(numbers, dtype=torch.float32)
    words = torch.full((len(numbers), 4), NOTHING)
    for row, number in enumerate(numbers):
        words[row, : number % 4 + 1] = torch.arange(number % 4 + 1) * 0.5
    return {"x": torch.stack([at.sin(), at.cos()], dim=1), "y": at % 3, "words": words}


def batches(number: int, accumulation: int, rank: int, world: int) -> list[Batch]:
    """The micro-batches of a rank in a step."""
    mine = list(range(number * ROWS, (number + 1) * ROWS))[rank::world]
    parts = [mine[part::accumulation] for part in range(accumulation)]
    return [
        Batch(rows(part), [f"toy/{row}" for row in part], ["even" if row % 2 == 0 else "odd" for row in part])
        for part in parts
    ]


def config(**changes: Any) -> TrainingConfig:
    return TrainingConfig(
        **{"max_steps": 4, "batch_size": ROWS, "learning_rate": 0.1, "warmup_steps": 0, "gradient_clipping": 0.5}
        | changes
    )


def main() -> None:
    """Take some steps under each of the settings."""
    rank, world = start_ranks()
    folder = Path(sys.argv[-1])
    found = {}
    for name, changes in SETTINGS.items():
        settings = config(**changes)
        engine = Engine(Toy(), ToyObjective(), settings, folder)
        steps = [engine.step(number, batches(number, settings.accumulation, rank, world)) for number in range(4)]
        state = engine.gathered_state()
        if rank == 0:
            found[name] = {"steps": [step.values() for step in steps], "weight": state["weight"].tolist()}
    if rank == 0:
        (folder / f"toy-{world}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
