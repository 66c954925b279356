"""One optimizer step through DeepSpeed; each loss is a mean over the global batch, however that is split."""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

from instructkit.config.settings import TrainingConfig
from instructkit.errors import UserError
from instructkit.models.recompute import compile_layers, recompute_layers
from instructkit.runs.ranks import max_over_ranks, sum_over_ranks
from instructkit.runs.waiting import meet
from instructkit.training.data import Batch
from instructkit.training.deepspeed_config import deepspeed_settings, offloads_optimizer
from instructkit.training.objectives import LossSum, Objective
from instructkit.training.optimizers import build_optimizer
from instructkit.training.schedule import learning_rate


class Step(NamedTuple):
    """What a step reached.

    Attributes:
        number: of the step, from 1.
        loss: the weighted sum of the objective's losses.
        losses: mean of each, over all ranks.
        counts: what each is the mean of, in number, by the name that the log gives it, over all ranks.
        samples: examples, over all ranks.
        learning_rate: used in it.
        gradient_norm: before clipping.
    """

    number: int
    loss: float
    losses: dict[str, float]
    counts: dict[str, int]
    samples: int
    learning_rate: float
    gradient_norm: float | None

    def values(self) -> dict[str, float | None]:
        """The values for a line of the log; of a single loss the weighted sum says all."""
        several = {f"loss/{name}": value for name, value in self.losses.items()} if len(self.losses) > 1 else {}
        rest = {"samples": self.samples, "learning_rate": self.learning_rate, "gradient_norm": self.gradient_norm}
        return {"loss": self.loss, **several, **self.counts, **rest}


def most_calls(mine: int) -> int:
    """How often the rank that calls a module most often calls it; call on every rank."""
    return int(max_over_ranks([mine])[0])


def free_memory() -> None:
    """Give back what an engine held, which refers to itself in circles, to the device."""
    gc.collect()
    get_accelerator().empty_cache()


class Engine:
    """A model in training.

    Args:
        model: with `requires_grad` set on what is trained. If it has a `hidden_size`, DeepSpeed's bucket sizes can
            follow from it; if it has `most_calls`, ZeRO 3 sets it (`instructkit.models.instruct_blip.InstructBlip`).
        objective: what it is trained for.
        config: settings.
        folder: of the run; where a step fails, its batch is described there.

    Raises:
        UserError: the settings contradict each other or the objective.
    """

    def __init__(self, model: Any, objective: Objective, config: TrainingConfig, folder: Path) -> None:
        self.objective, self.config, self.folder = objective, config, folder
        if objective.contrastive and config.accumulation > 1:
            raise UserError(
                f"training.accumulation={config.accumulation} cannot be used with the loss "
                f"{' + '.join(objective.losses)}, which compares the examples of a micro-batch with each other; set "
                f"accumulation=1, and activation_checkpointing=true if memory is short"
            )
        if config.compile:
            compile_layers(model)
        if config.activation_checkpointing:
            recompute_layers(model)
        if config.zero_stage == 3:
            model.most_calls = most_calls
        meet()  # ranks read the model at different speeds, and DeepSpeed begins with a collective
        settings = deepspeed_settings(config, getattr(model, "hidden_size", None))
        optimizer = build_optimizer(model, config, offloads_optimizer(settings))
        self.deepspeed, self.optimizer, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
        self.device = self.deepspeed.device

    @property
    def model(self) -> Any:
        """The model inside the engine."""
        return self.deepspeed.module

    def step(
        self,
        number: int,
        batches: Iterable[Batch],
        seed: int = 0,
        seen: Callable[[Batch, dict[str, LossSum]], None] = lambda batch, sums: None,
    ) -> Step:
        """One optimizer step from this rank's micro-batches.

        Every rank's and micro-batch's sums are divided by the counts of the whole global batch, so the gradient does
        not depend on how the batch was split.

        Args:
            number: of the step, from 0; the learning rate follows from it.
            batches: `accumulation` micro-batches.
            seed: of the run; dropout follows from it, the step, the micro-batch and the rank.
            seen: gets every micro-batch and its sums.

        Raises:
            UserError: the loss is not finite, or the global batch has no term of a loss.
        """
        batches = list(batches)
        rate = learning_rate(number, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)
        announced = [{name: int(n.sum()) for name, n in self.objective.counts(batch).items()} for batch in batches]
        counts, samples = self._count(number, announced, batches)
        parts = dist.get_world_size() * len(batches)
        scales = {name: loss.weight * (parts / counts[name]) for name, loss in self.objective.losses.items()}
        totals = torch.zeros(len(scales), dtype=torch.float64, device=self.device)
        found, norm = [], None
        for index, batch in enumerate(batches):
            torch.manual_seed(hash((seed, number, index, dist.get_rank())) & 0x7FFF_FFFF)
            sums = self.objective(self.deepspeed, batch.to(self.device))
            if {name: each.count for name, each in sums.items()} != announced[index]:
                raise ValueError(f"the objective's sums have other counts than {announced[index]}, which it announced")
            seen(batch, sums)
            terms = [sums[name].total * scale for name, scale in scales.items()]
            self.deepspeed.backward(sum(terms[1:], start=terms[0]))
            totals += torch.stack([sums[name].total.detach() for name in scales])
            found.append({name: sums[name].rows for name in scales})
            if index + 1 == len(batches) and not self.config.zero_stage and self.config.precision == "fp32":
                norm = self._gradient_norm()  # DeepSpeed clips here without saying what the norm was
            self.deepspeed.step()
        if norm is None:
            norm = self.deepspeed.get_global_grad_norm()
        everywhere = sum_over_ranks(totals.tolist())
        means = {name: total / counts[name] for name, total in zip(scales, everywhere, strict=True)}
        step = Step(
            number=number + 1,
            loss=sum(loss.weight * means[name] for name, loss in self.objective.losses.items()),
            losses=means,
            counts=self._named(counts),
            samples=samples,
            learning_rate=rate,
            gradient_norm=None if norm is None else float(norm),
        )
        if not math.isfinite(step.loss) or not math.isfinite(step.gradient_norm or 0.0):
            self._stop(step, batches, found)
        return step

    def _count(
        self, number: int, announced: Sequence[Mapping[str, int]], batches: Sequence[Batch]
    ) -> tuple[dict[str, int], int]:
        """Terms of each loss and examples in the global batch."""
        names = list(self.objective.losses)
        mine = [sum(counts[name] for counts in announced) for name in names]
        *counts, samples = sum_over_ranks([*mine, sum(len(batch.examples) for batch in batches)])
        for name, count in zip(names, counts, strict=True):
            if not count:
                unit = self.objective.losses[name].unit
                raise UserError(f"step {number + 1}: its batch has no {unit} for the loss {name}; look at the data")
        return {name: int(count) for name, count in zip(names, counts, strict=True)}, int(samples)

    def _named(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Counts as the log calls them: by their unit, of several losses with the loss's name behind it."""
        units = {name: loss.unit for name, loss in self.objective.losses.items()}
        return {units[name] if len(counts) == 1 else f"{units[name]}/{name}": n for name, n in counts.items()}

    def _gradient_norm(self) -> torch.Tensor:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    def _stop(self, step: Step, batches: Sequence[Batch], found: Sequence[dict[str, torch.Tensor]]) -> NoReturn:
        """End the run; the step's examples, each with what it adds to the losses, go to `not_finite.json`."""
        mine = [
            {"example": example, **{name: str(rows[row].item()) for name, rows in sums.items()}}
            for batch, sums in zip(batches, found, strict=True)
            for row, example in enumerate(batch.examples)
        ]
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
        path = self.folder / "not_finite.json"
        if dist.get_rank() == 0:
            facts = {"step": step.number, **{name: str(value) for name, value in step.values().items()}}
            path.write_text(json.dumps({**facts, "ranks": everyone}, indent=1))
        raise UserError(
            f"step {step.number}: the loss is {step.loss} and the gradient's norm {step.gradient_norm}; {path} lists "
            f"the examples of its batch; look at them, or lower learning_rate"
        )

    def free(self) -> None:
        """Take the engine apart: no step can follow. `free_memory` gives back what nobody refers to any more."""
        self.deepspeed.destroy()
        # ZeRO 3 keeps modules for ever, in caches inside its wrapped methods and in a list; their hooks keep the rest.
        for method in vars(PartitionedParameterCoordinator).values():
            for cell in getattr(method, "__closure__", None) or ():
                if hasattr(cell.cell_contents, "cache_clear"):
                    cell.cell_contents.cache_clear()
        own = set(self.model.modules())
        FWD_MODULE_STACK[:] = [module for module in FWD_MODULE_STACK if module not in own]

    def gathered_state(self, trained_only: bool = False) -> dict[str, torch.Tensor]:
        """Parameters on the CPU, whole on the first rank; call on every rank, since ZeRO 3 shards them.

        Buffers that belong to a model's weights, such as running statistics, come with them; no training changes them.

        Args:
            trained_only: leave out what is frozen and came from a checkpoint.
        """
        state = {}
        if not trained_only:
            kept = self.model.state_dict().keys()
            state = {name: buffer.detach().cpu() for name, buffer in self.model.named_buffers() if name in kept}
        without_checkpoint = getattr(self.model, "fresh", ())
        for name, parameter in self.model.named_parameters():
            fresh = name.replace(".base_layer.", ".") in without_checkpoint
            if trained_only and not parameter.requires_grad and not fresh:
                continue
            with deepspeed.zero.GatheredParameters([parameter], enabled=self.config.zero_stage == 3):
                if dist.get_rank() == 0:
                    state[name] = parameter.detach().cpu().clone()
        return state
