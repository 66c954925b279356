"""Waits of one rank for another, of any length: through the store that the ranks met at, never in a collective.

A collective gives up after some minutes, and on a GPU it spins until then. Converting a dataset, reading a model from a
slow disk or scoring a benchmark on one rank may take hours; the others look at the store meanwhile. Every rank calls
these functions in the same order.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from instructkit.errors import UserError

T = TypeVar("T")
LONGEST_PAUSE = 0.5
"""Seconds between two looks at the store."""


def on_first_rank(action: Callable[[], T]) -> T:
    """Do something on the first rank alone and give its result to all; call on every rank.

    Raises:
        UserError: the action raised it; every rank then does, so that none waits for another that has gone.
    """
    if _world() == 1:
        return action()
    store, key = _get_default_store(), _next_key()
    result: Any = None
    problem: str | None = None
    if dist.get_rank() == 0:
        try:
            result = action()
        except UserError as error:
            problem = str(error)
        store.set(key, pickle.dumps((result, problem)).hex())
        _wait(store, f"{key}/read")  # the first rank keeps the store: it may not end before the others have read
    else:
        _wait(store, key)
        result, problem = pickle.loads(bytes.fromhex(store.get(key).decode()))
        _come(store, f"{key}/read", _world() - 1)
    if problem is not None:
        shared = UserError(problem)
        shared.shared = True
        raise shared
    done: T = result
    return done


def meet() -> None:
    """Go on when all ranks have come here."""
    if _world() == 1:
        return
    store, key = _get_default_store(), _next_key()
    _come(store, key, _world())
    on_first_rank(lambda: _wait(store, key))


def first_on_machine(action: Callable[[], T]) -> T:
    """Let the first rank of each machine do something before its others, which find it done; call on every rank.

    `datasets` writes a cache when it opens one, and fails where two processes write the same; of a model only the first
    reads the disk, and the others what the machine then has in memory.
    """
    first = int(os.environ.get("LOCAL_RANK", 0)) == 0
    try:
        if not first:
            meet()
        return action()
    finally:
        if first:
            meet()
        meet()


def _world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _next_key() -> str:
    """A key that all ranks agree on, since all count their calls."""
    calls = _get_default_store().add(f"instructkit/calls/{dist.get_rank()}", 1)
    return f"instructkit/wait/{calls}"


def _come(store: dist.Store, key: str, ranks: int) -> None:
    """Count this rank; the last of so many sets the key."""
    if store.add(f"{key}/count", 1) == ranks:
        store.set(key, "")


def _wait(store: dist.Store, key: str) -> None:
    """Look until a key is there, at first often.

    Raises:
        UserError: the process that keeps the store has ended.
    """
    pause = 0.001
    try:
        while not store.check([key]):
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
    except RuntimeError as error:
        raise UserError(
            f"rank {dist.get_rank()} waited for another rank, which has ended; what that one wrote says why"
        ) from error
