"""The processes of an evaluation: alone, or several ranks that share the batches out."""

from __future__ import annotations

from typing import NamedTuple

import torch.distributed as dist

from instructkit.runs.waiting import meet


class Ranks(NamedTuple):
    """This process among those that evaluate.

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
