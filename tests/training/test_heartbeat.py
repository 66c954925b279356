"""Ranks that count as several machines: who ends without a goodbye, or falls silent, is named by all the others."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.training.mini import environment

SCRIPT = """
import os, sys
import torch.distributed as dist
from instructkit.runs import heartbeat

heartbeat.BEAT, heartbeat.LOST = 0.2, 10.0
rank = int(os.environ["RANK"])
dist.init_process_group("gloo")
heartbeat.watch_ranks(rank, 3, 1)
print("watched", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def ranks() -> Iterator[list[subprocess.Popen[str]]]:
    """Three processes that watch each other until they get a line."""
    base = {**environment(), "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env={**base, "RANK": str(rank)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    try:
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "watched\n"
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def last_words(process: subprocess.Popen[str]) -> str:
    """What a process says on its own; its input stays open."""
    process.wait(60)
    assert process.stderr is not None
    return next(line for line in process.stderr.read().splitlines() if line.startswith("error:"))


@pytest.mark.parametrize("lost", [0, 2])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_others_name_the_rank_that_is_lost(
    ranks: list[subprocess.Popen[str]], lost: int, number: signal.Signals
) -> None:
    ranks[lost].send_signal(number)
    for rank in {0, 1, 2} - {lost}:
        assert last_words(ranks[rank]).startswith(f"error: lost rank {lost} on "), rank
        assert ranks[rank].returncode == 1


def test_ranks_may_end_one_after_the_other(ranks: list[subprocess.Popen[str]]) -> None:
    for process in ranks:
        _, told = process.communicate("end\n", timeout=60)
        assert process.returncode == 0, told
        assert "error:" not in told
