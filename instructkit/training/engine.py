"""One optimizer step through DeepSpeed; the loss is the mean over the target tokens of the global batch."""

from __future__ import annotations

import gc
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

from instructkit.config import TrainingConfig
from instructkit.errors import UserError
from instructkit.models.instruct_blip import AnswerLoss, InstructBlip
from instructkit.models.recompute import compile_layers, recompute_layers
from instructkit.runs.cores import bound_primitives
from instructkit.runs.heartbeat import watch_ranks
from instructkit.runs.waiting import meet
from instructkit.training.data import Batch
from instructkit.training.deepspeed_config import deepspeed_settings, offloads_optimizer
from instructkit.training.features import keep
from instructkit.training.optimizers import build_optimizer
from instructkit.training.schedule import learning_rate


class Step(NamedTuple):
    """What a step reached.

    Attributes:
        loss: mean negative log-likelihood of a target token, over all ranks.
        tokens: target tokens, over all ranks.
        samples: examples, over all ranks.
        learning_rate: used in it.
        gradient_norm: before clipping.
    """

    loss: float
    tokens: int
    samples: int
    learning_rate: float
    gradient_norm: float | None


def start_ranks() -> tuple[int, int]:
    """Join the processes that the launcher started: (rank, world).

    Without a launcher this process is the only one. With GPUs each rank takes its own before ranks first talk: the
    first collective would otherwise run on GPU 0 for all of them. On the CPU the cores are shared out between the ranks
    of a machine unless OMP_NUM_THREADS says otherwise, and DeepSpeed's shared-memory operator stays out of use: it
    would be compiled at first use, which costs minutes and a C++ compiler, and two ranks gain nothing from it over
    Gloo.

    Raises:
        UserError: more ranks were started on this machine than it has GPUs.
    """
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500")
    bound_primitives()
    # The first is deepspeed's name for it, the second torchrun's.
    local = int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or os.environ["WORLD_SIZE"])
    if get_accelerator().device_name() == "cpu":
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local))
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    else:
        _take_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        deepspeed.init_distributed(verbose=False)
        watch_ranks(dist.get_rank(), dist.get_world_size(), local)
    return dist.get_rank(), dist.get_world_size()


def _take_device(local: int) -> None:
    accelerator = get_accelerator()
    if local >= accelerator.device_count():
        raise UserError(
            f"rank {local} of this machine has no {accelerator.device_name()} device: there are "
            f"{accelerator.device_count()}; start fewer ranks (deepspeed --num_accelerators N)"
        )
    accelerator.set_device(local)


def share(value: Sequence[float]) -> list[float]:
    """Sums over the ranks, in double precision."""
    total = torch.tensor(list(value), dtype=torch.float64, device=get_accelerator().current_device_name())
    if dist.get_world_size() > 1:
        dist.all_reduce(total)
    return [float(number) for number in total.tolist()]


def largest(values: Sequence[float]) -> list[float]:
    """The largest of each over the ranks."""
    found = torch.tensor(list(values), dtype=torch.float64, device=get_accelerator().current_device_name())
    if dist.get_world_size() > 1:
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return [float(value) for value in found.tolist()]


def most_calls(mine: int) -> int:
    """How often the rank that calls a module most often calls it; call on every rank."""
    return int(largest([mine])[0])


def free_memory() -> None:
    """Give back what an engine held, which refers to itself in circles, to the device."""
    gc.collect()
    get_accelerator().empty_cache()


class Engine:
    """A model in training.

    Args:
        model: with `requires_grad` set on what is trained.
        config: settings.
        folder: of the run; where a step fails, its batch is described there.
    """

    def __init__(self, model: InstructBlip, config: TrainingConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        if config.compile:
            if config.zero_stage == 3:
                raise UserError(
                    "training.compile=true: ZeRO 3 fetches weights inside layers, where graphs would break; "
                    "take zero_stage=2 or leave compile out"
                )
            compile_layers(model)
        if config.activation_checkpointing:
            recompute_layers(model)
        if config.zero_stage == 3:
            model.most_calls = most_calls
        meet()  # ranks read the model at different speeds, and DeepSpeed begins with a collective
        settings = deepspeed_settings(config, model.language_model.config.hidden_size)
        optimizer = build_optimizer(model, config, offloads_optimizer(settings))
        self.deepspeed, self.optimizer, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
        self.device = self.deepspeed.device

    @property
    def model(self) -> InstructBlip:
        """The model inside the engine."""
        return self.deepspeed.module

    def step(
        self,
        number: int,
        batches: Iterable[Batch],
        seed: int = 0,
        seen: Callable[[Batch, AnswerLoss], None] = lambda batch, answer: None,
    ) -> Step:
        """One optimizer step from this rank's micro-batches.

        Every rank's and micro-batch's sum of losses is divided by the number of target tokens in the whole global
        batch, so the gradient does not depend on how the batch was split.

        Args:
            number: of the step, from 0; the learning rate follows from it.
            batches: `accumulation` micro-batches.
            seed: of the run; dropout follows from it, the step, the micro-batch and the rank.
            seen: gets every micro-batch and what the model made of it.
        """
        batches = list(batches)
        rate = learning_rate(number, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        local = [sum(batch.targets for batch in batches), sum(len(batch.examples) for batch in batches)]
        tokens, samples = share(local)
        scale = dist.get_world_size() * len(batches) / tokens
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        rows, norm = [], None
        for index, batch in enumerate(batches):
            torch.manual_seed(hash((seed, number, index, dist.get_rank())) & 0x7FFF_FFFF)
            inputs = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.inputs.items()}
            answer = self.deepspeed(**inputs)
            seen(batch, answer)
            if batch.unkept:
                keep(batch.unkept, answer.patches)
            self.deepspeed.backward(answer.total * scale)
            total += answer.total.detach()
            rows.append(answer.rows)
            if index + 1 == len(batches) and not self.config.zero_stage and self.config.precision == "fp32":
                norm = self._gradient_norm()  # DeepSpeed clips here without saying what the norm was
            self.deepspeed.step()
        (nll,) = share([float(total)])
        if norm is None:
            norm = self.deepspeed.get_global_grad_norm()
        step = Step(nll / tokens, int(tokens), int(samples), rate, None if norm is None else float(norm))
        if not math.isfinite(step.loss) or not math.isfinite(step.gradient_norm or 0.0):
            self._stop(number, step, batches, rows)
        return step

    def _gradient_norm(self) -> torch.Tensor:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    def _stop(self, number: int, step: Step, batches: Sequence[Batch], rows: Sequence[torch.Tensor]) -> NoReturn:
        """End the run; the step's examples, each with the sum of its token losses, go to `not_finite.json`."""
        mine = [
            {"example": example, "nll": str(value)}
            for batch, row in zip(batches, rows, strict=True)
            for example, value in zip(batch.examples, row.tolist(), strict=True)
        ]
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
        path = self.folder / "not_finite.json"
        if dist.get_rank() == 0:
            facts = {"step": number + 1, **{name: str(value) for name, value in step._asdict().items()}}
            path.write_text(json.dumps({**facts, "ranks": everyone}, indent=1))
        raise UserError(
            f"step {number + 1}: the loss is {step.loss} and the gradient's norm {step.gradient_norm}; {path} lists "
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
        for name, parameter in self.model.named_parameters():
            fresh = name.replace(".base_layer.", ".") in self.model.fresh
            if trained_only and not parameter.requires_grad and not fresh:
                continue
            with deepspeed.zero.GatheredParameters([parameter], enabled=self.config.zero_stage == 3):
                if dist.get_rank() == 0:
                    state[name] = parameter.detach().cpu().clone()
        return state
