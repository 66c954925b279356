"""Ranks that count as several machines: who ends without a goodbye, or falls silent, is named by all the others."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from tests import forks
from tests.training.mini import ranks_of

RANKS = 3
SCRIPT = """
import atexit, os, sys
import torch.distributed as dist
from instructkit.runs import heartbeat

heartbeat.BEAT, heartbeat.LOST = 0.2, 10.0
rank = int(os.environ["RANK"])
dist.init_process_group("gloo")
heartbeat.watch_ranks(rank, 3, 1)
print("watched", flush=True)
open(f"{sys.argv[1]}/end-{rank}").readline()
atexit._run_exitfuncs()  # a forked process leaves these out
"""


class Watching:
    """Three processes that watch each other until they get a line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        script = folder / "script.py"
        script.write_text(SCRIPT)
        self.processes: list[ForkServerProcess] = []
        for rank, environ in enumerate(ranks_of(RANKS)):
            os.mkfifo(folder / f"end-{rank}")
            said = folder / f"said-{rank}"
            said.touch()
            self.processes += forks.start(script, [str(folder)], said, [{**environ, "LOCAL_WORLD_SIZE": "1"}])
        while not all("watched\n" in self.said(rank) for rank in range(RANKS)):
            assert all(process.exitcode is None for process in self.processes), list(map(self.said, range(RANKS)))
            time.sleep(0.02)

    def said(self, rank: int) -> str:
        return (self.folder / f"said-{rank}").read_text()

    def code(self, rank: int) -> int | None:
        """Exit code of a rank, when it has ended."""
        self.processes[rank].join(60)
        return self.processes[rank].exitcode


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Watching]:
    watching = Watching(tmp_path)
    yield watching
    forks.end(watching.processes)


@pytest.mark.parametrize("lost", [0, 2])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_others_name_the_rank_that_is_lost(ranks: Watching, lost: int, number: signal.Signals) -> None:
    os.kill(ranks.processes[lost].pid or 0, number)
    for rank in {0, 1, 2} - {lost}:
        assert ranks.code(rank) == 1
        line = next(line for line in ranks.said(rank).splitlines() if line.startswith("error:"))
        assert line.startswith(f"error: lost rank {lost} on "), rank


def test_ranks_may_end_one_after_the_other(ranks: Watching) -> None:
    for rank in range(RANKS):
        (ranks.folder / f"end-{rank}").write_text("end\n")
        assert ranks.code(rank) == 0, ranks.said(rank)
        assert "error:" not in ranks.said(rank)
