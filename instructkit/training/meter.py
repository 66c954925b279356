"""What a run tells while it trains: losses by dataset, speed, useful tokens, memory, since it last told.

mean_loss               mean loss of a target token since the line before, over all ranks
mean_loss/<dataset>     the same over the rows of one dataset
samples_per_second      examples over the time in training steps (evaluations and checkpoints left out)
cut/<text>/<dataset>    rows of a dataset of which a limit cut the Q-Former's text, the instruction or the answer, since
                        the run's first step
useful_token_share      tokens that rows hold (soft prompts, instructions, targets) over the positions that the LLM
                        computed; the rest is padding. 1 for a decoder-only LLM with throughput.packing
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

from instructkit.models.batches import TEXTS
from instructkit.models.instruct_blip import IGNORED, AnswerLoss, InstructBlip
from instructkit.runs.log import CUT
from instructkit.training.data import Batch
from instructkit.training.engine import largest, share
from instructkit.training.flops import FlopCount, llm_work, matmul_peak

GIB = 2**30


class Meter:
    """Sums over the steps since the line before.

    Args:
        model: what is trained.
        datasets: names in the mixture.
        device: where it is trained.
    """

    def __init__(self, model: InstructBlip, datasets: Sequence[str], device: torch.device) -> None:
        self._model = model
        self._numbers = {name: number for number, name in enumerate(datasets)}
        self._count = FlopCount(model)
        (self._peak,) = share([matmul_peak(device, model.query_tokens.dtype)])
        self._nll = torch.zeros(len(datasets), dtype=torch.float64, device=device)
        self._targets = torch.zeros(len(datasets), dtype=torch.float64)
        self._kinds = [(text, name) for text in TEXTS for name in datasets]
        self._cut: Counter[tuple[str, str]] = Counter()
        self._clear([0.0] * len(self._kinds))

    def _clear(self, cut: list[float]) -> None:
        self._nll.zero_()
        self._targets.zero_()
        self._settled = [0.0] * (2 * len(self._numbers) + 2) + cut
        self._samples = self._useful = self._computed = 0
        self._seconds = self._flops = 0.0

    def add(self, batch: Batch, answer: AnswerLoss) -> None:
        """Take in a micro-batch of this rank; nothing waits for the device."""
        owners = torch.tensor([self._numbers[name] for name in batch.datasets])
        # As a product, which always adds up in the same order; index_add on a GPU does not.
        mine = (owners == torch.arange(len(self._numbers))[:, None]).double()
        self._nll += mine.to(self._nll.device, non_blocking=True) @ answer.rows.double()
        self._targets += mine @ (batch.inputs["labels"] != IGNORED).sum(1).double()
        self._cut.update((text, name) for texts, name in zip(batch.cut, batch.datasets, strict=False) for text in texts)
        self._samples += len(batch.examples)
        work = llm_work(self._model, batch.inputs)
        self._useful += work.held
        self._computed += work.read + work.written
        self._flops += self._count.count(batch.inputs, work)

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
        new = share(
            [
                *self._nll.tolist(),
                *self._targets.tolist(),
                self._useful,
                self._computed,
                *(self._cut[kind] for kind in self._kinds),
            ]
        )
        self._settled = [old + more for old, more in zip(self._settled, new, strict=True)]
        self._nll.zero_()
        self._targets.zero_()
        self._cut.clear()
        self._useful = self._computed = 0
        return self._settled

    def restore(self, state: Sequence[float]) -> None:
        """Go on from a checkpoint's sums."""
        self._settled = list(state)

    def read(self) -> dict[str, float]:
        """The values for a line of the log, and start anew; call on every rank."""
        state = self.state()
        cut = state[len(state) - len(self._kinds) :]
        *sums, useful, computed = state[: len(state) - len(self._kinds)]
        nll, targets = sums[: len(self._numbers)], sums[len(self._numbers) :]
        (samples, flops), (seconds,) = share([self._samples, self._flops]), largest([self._seconds])
        values = {"mean_loss": sum(nll) / sum(targets)}
        for name, number in self._numbers.items():
            if targets[number]:
                values[f"mean_loss/{name}"] = nll[number] / targets[number]
        values["samples_per_second"] = round(samples / seconds, 2)
        values["useful_token_share"] = round(useful / computed, 4)
        values["flop_utilisation"] = round(flops / (seconds * self._peak), 4)
        values |= {f"{CUT}{text}/{name}": int(n) for (text, name), n in zip(self._kinds, cut, strict=True) if n}
        values |= peak_memory()
        self._clear(cut)
        return values


def peak_memory() -> dict[str, float]:
    """Most memory that was held at once, on the rank that held most."""
    if torch.cuda.is_available():
        return {"peak_gpu_memory_gib": round(largest([torch.cuda.max_memory_allocated()])[0] / GIB, 3)}
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, KiB on Linux
    return {"peak_memory_gib": round(largest([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss])[0] * unit / GIB, 3)}
