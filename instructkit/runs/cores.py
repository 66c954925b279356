"""How a process uses CPU cores: what torch's libraries read from the environment when they are loaded.

Import this before torch, so that `share_cores` can still decide. What the user has set in the environment stands.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

PRIMITIVES = "16"
"""Compiled kernels that oneDNN keeps. Its own 1,024 are kept by shape; packed batches have ever new shapes, so memory
would grow by 0.4 MB a step for hundreds of steps."""

_WATCHED_SECONDS = 0.2
_STAT = Path("/proc/stat")


def bound_primitives() -> None:
    """Bound oneDNN's cache of compiled kernels; counts until torch first computes on the CPU."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", PRIMITIVES)


def share_cores() -> None:
    """Let threads sleep while they wait for each other if other processes are busy; call before torch is loaded.

    By default GNU OpenMP's threads spin at the end of every parallel loop. That is fastest on free cores. Beside a busy
    process a thread that spins keeps the core from the one that it waits for, and training takes several times as long.
    """
    bound_primitives()
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        return
    siblings = int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or 1) - 1
    if busy_cores() - siblings >= 0.5:  # ranks that start beside this one share the cores out by number
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def busy_cores() -> float:
    """How many of the cores that this process may use others are using now; 0 where the kernel does not tell."""
    before = _times()
    time.sleep(_WATCHED_SECONDS)
    busy = 0.0
    for core, (idle, total) in _times().items():
        first_idle, first_total = before.get(core, (idle, total))
        if total > first_total:
            busy += 1 - (idle - first_idle) / (total - first_total)
    return busy


def _times() -> dict[int, tuple[int, int]]:
    """By core of this process: ticks without work, and all ticks (see proc_stat(5))."""
    if not _STAT.exists():
        return {}
    cores = os.sched_getaffinity(0)
    found = {}
    for line in _STAT.read_text().splitlines():
        name, *words = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            ticks = [int(word) for word in words[:8]]
            found[int(name[3:])] = (ticks[3] + ticks[4], sum(ticks))
    return found
