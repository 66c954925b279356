"""What a run tells while it trains: losses by dataset, speed, useful tokens, memory, since it last told.

mean_loss               mean loss since the line before, over all ranks; of several losses their weighted sum
mean_loss/<dataset>     the same over the rows of one dataset, where the objective has a single loss
mean_<loss>             mean of each loss, where it has several
mean_<loss>/<dataset>   the same over the rows of one dataset
samples_per_second      examples over the time in training steps (evaluations and checkpoints left out)
cut/<text>/<dataset>    rows of a dataset of which a limit cut the Q-Former's text, the instruction or the answer, since
                        the run's first step
useful_token_share      tokens that rows hold (soft prompts, instructions, targets) over the positions that the LLM
                        computed; the rest is padding. 1 for a decoder-only LLM with throughput.packing. Only where
                        the objective knows the model's work, as is the next
flop_utilisation        operations of the model over those that the devices could have done meanwhile
peak_gpu_memory_gib     most that tensors held at once on a device, on the worst rank; without a GPU
peak_memory_gib         the most that a rank's process held resident
"""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from instructkit.models.batches import TEXTS
from instructkit.runs.log import CUT
from instructkit.runs.ranks import max_over_ranks, sum_over_ranks
from instructkit.training.data import Batch
from instructkit.training.flops import matmul_peak
from instructkit.training.objectives import LossSum, Objective

GIB = 2**30


class Meter:
    """Sums over the steps since the line before.

    Args:
        objective: what the model is trained for.
        model: what is trained.
        datasets: names in the mixture.
        device: where it is trained.
    """

    def __init__(self, objective: Objective, model: nn.Module, datasets: Sequence[str], device: torch.device) -> None:
        self._objective = objective
        self._numbers = {name: number for number, name in enumerate(datasets)}
        self._work = objective.work(model)
        self._peak = 0.0
        if self._work is not None:
            (self._peak,) = sum_over_ranks([matmul_peak(device, next(model.parameters()).dtype)])
        shape = (len(objective.losses), len(datasets))
        self._totals = torch.zeros(shape, dtype=torch.float64, device=device)
        self._counts = torch.zeros(shape, dtype=torch.float64)
        self._kinds = [(text, name) for text in TEXTS for name in datasets]
        self._cut: Counter[tuple[str, str]] = Counter()
        self._clear([0.0] * len(self._kinds))

    def _clear(self, cut: list[float]) -> None:
        self._totals.zero_()
        self._counts.zero_()
        self._settled = [0.0] * (2 * self._counts.numel() + 2) + cut
        self._samples = self._useful = self._computed = 0
        self._seconds = self._flops = 0.0

    def add(self, batch: Batch, sums: dict[str, LossSum]) -> None:
        """Take in a micro-batch of this rank, on the CPU, and its sums; nothing waits for the device."""
        owners = torch.tensor([self._numbers[name] for name in batch.datasets])
        # As a product, which always adds up in the same order; index_add on a GPU does not.
        mine = (owners == torch.arange(len(self._numbers))[:, None]).double()
        here = mine.to(self._totals.device, non_blocking=True)
        counts = self._objective.counts(batch)
        for number, name in enumerate(self._objective.losses):
            self._totals[number] += here @ sums[name].rows.double()
            self._counts[number] += mine @ counts[name].double()
        self._cut.update((text, name) for texts, name in zip(batch.cut, batch.datasets, strict=False) for text in texts)
        self._samples += len(batch.examples)
        if self._work is not None:
            work = self._work(batch)
            self._useful += work.useful
            self._computed += work.computed
            self._flops += work.flops

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Around a step; what happens between steps is no training time."""
        began = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - began

    def state(self) -> list[float]:
        """The sums over all ranks, for a checkpoint: a run that goes on logs what one never stopped does.

        Call on every rank.
        """
        new = sum_over_ranks(
            [
                *self._totals.flatten().tolist(),
                *self._counts.flatten().tolist(),
                self._useful,
                self._computed,
                *(self._cut[kind] for kind in self._kinds),
            ]
        )
        self._settled = [old + more for old, more in zip(self._settled, new, strict=True)]
        self._totals.zero_()
        self._counts.zero_()
        self._cut.clear()
        self._useful = self._computed = 0
        return self._settled

    def restore(self, state: Sequence[float]) -> None:
        """Go on from a checkpoint's sums."""
        self._settled = list(state)

    def read(self) -> dict[str, float]:
        """The values for a line of the log, and start again from zero; call on every rank."""
        state = self.state()
        size = self._counts.numel()
        totals, counts = torch.tensor(state[: 2 * size], dtype=torch.float64).view(2, *self._counts.shape)
        useful, computed, *cut = state[2 * size :]
        (samples, flops), (seconds,) = sum_over_ranks([self._samples, self._flops]), max_over_ranks([self._seconds])
        values = self._means(totals, counts)
        values["samples_per_second"] = round(samples / seconds, 2)
        if self._work is not None:
            values["useful_token_share"] = round(useful / computed, 4)
            values["flop_utilisation"] = round(flops / (seconds * self._peak), 4)
        values |= {f"{CUT}{text}/{name}": int(n) for (text, name), n in zip(self._kinds, cut, strict=True) if n}
        values |= peak_memory()
        self._clear(cut)
        return values

    def _means(self, totals: Tensor, counts: Tensor) -> dict[str, float]:
        """Means of the losses and, by dataset, of those that have rows of it; both `[losses, datasets]`."""
        losses = self._objective.losses
        overall = [sum(total) / sum(count) for total, count in zip(totals.tolist(), counts.tolist(), strict=True)]
        values = {"mean_loss": sum(loss.weight * mean for loss, mean in zip(losses.values(), overall, strict=True))}
        for number, name in enumerate(losses):
            key = "mean_loss" if len(losses) == 1 else f"mean_{name}"
            values.setdefault(key, overall[number])
            for dataset, column in self._numbers.items():
                if counts[number, column]:
                    values[f"{key}/{dataset}"] = float(totals[number, column] / counts[number, column])
        return values


def peak_memory() -> dict[str, float]:
    """Most memory that was held at once, on the rank that held most."""
    if torch.cuda.is_available():
        return {"peak_gpu_memory_gib": round(max_over_ranks([torch.cuda.max_memory_allocated()])[0] / GIB, 3)}
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, KiB on Linux
    (peak,) = max_over_ranks([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss])
    return {"peak_memory_gib": round(peak * unit / GIB, 3)}
