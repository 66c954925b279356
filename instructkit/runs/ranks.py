"""The processes of a run: how they start together and which one this is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from instructkit.errors import UserError
from instructkit.runs.cores import bound_primitives
from instructkit.runs.heartbeat import watch_ranks
from instructkit.runs.waiting import meet


class Ranks(NamedTuple):
    """This process among those of the run.

    Attributes:
        rank: number of this process.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that merges, scores and talks."""
        return self.rank == 0

    def wait(self) -> None:
        """Go on when all have come here, however long the slowest takes."""
        if self.world > 1:
            meet()


def current_ranks() -> Ranks:
    """The ranks of the process group, if one was joined."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks()


def sum_over_ranks(values: Sequence[float]) -> list[float]:
    """The sum of each value over the ranks, in double precision; call on every rank."""
    return _over_ranks(values, dist.ReduceOp.SUM)


def max_over_ranks(values: Sequence[float]) -> list[float]:
    """The largest of each value over the ranks; call on every rank."""
    return _over_ranks(values, dist.ReduceOp.MAX)


def _over_ranks(values: Sequence[float], operation: Any) -> list[float]:
    if current_ranks().world == 1:
        return [float(value) for value in values]
    from deepspeed.accelerator import get_accelerator

    found = torch.tensor(list(values), dtype=torch.float64, device=get_accelerator().current_device_name())
    dist.all_reduce(found, op=operation)
    return [float(value) for value in found.tolist()]


def start_ranks() -> tuple[int, int]:
    """Join the processes that the launcher started: (rank, world).

    Without a launcher this process is the only one, and one process needs no port. With GPUs each rank takes its own
    before ranks first talk: the first collective would otherwise run on GPU 0 for all of them. On the CPU the cores are
    shared out between the ranks of a machine unless OMP_NUM_THREADS says otherwise, and DeepSpeed's shared-memory
    operator stays out of use: it would be compiled at first use, which costs minutes and a C++ compiler, and two ranks
    gain nothing from it over Gloo.

    Raises:
        UserError: more ranks were started on this machine than it has GPUs, or the port where they meet is taken.
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator

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
        if os.environ["WORLD_SIZE"] == "1":
            backend = get_accelerator().communication_backend_name()
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        try:
            deepspeed.init_distributed(verbose=False)
        except dist.DistNetworkError as error:
            raise UserError(_no_meeting(str(error))) from error
        watch_ranks(dist.get_rank(), dist.get_world_size(), local)
    return dist.get_rank(), dist.get_world_size()


def _no_meeting(reason: str) -> str:
    """Why the ranks could not meet, in words."""
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    if "EADDRINUSE" in reason:
        return (
            f"port {port} is used by another program on this machine, perhaps by another run; "
            f"choose another: deepspeed --master_port {int(port) + 1} recipes/..."
        )
    return f"ranks cannot meet at {address} port {port}: {reason.splitlines()[0][:200]}"


def _take_device(local: int) -> None:
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    if local >= accelerator.device_count():
        raise UserError(
            f"rank {local} of this machine has no {accelerator.device_name()} device: there are "
            f"{accelerator.device_count()}; start fewer ranks (deepspeed --num_accelerators N)"
        )
    accelerator.set_device(local)
