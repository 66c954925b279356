"""Ranks of tests, forked from a process that has loaded the libraries: to load them anew takes ten seconds each.

The first use starts Python's fork server. What it forks gets environment, arguments and output of its own, as a process
would that the shell has started. What libraries read from the environment when they are loaded is that of `QUIET`.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from unittest import mock

from instructkit.runs.ending import ENDING

ROOT = Path(__file__).resolve().parents[1]
QUIET = {
    "WANDB_MODE": "disabled",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONPATH": str(ROOT),
}


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.loaded"])
    with mock.patch.dict(os.environ, QUIET):
        forkserver.ensure_running()
    return context


def start(
    script: Path, arguments: Sequence[str], said: Path, environments: Sequence[dict[str, str]]
) -> list[ForkServerProcess]:
    """Start a script once in each environment; all append to the file `said` what they print."""
    context = _context()
    processes = [context.Process(target=_run, args=(str(script), arguments, str(said), each)) for each in environments]
    for process in processes:
        process.start()
    return processes


def end(processes: Sequence[ForkServerProcess]) -> None:
    """Kill processes and all that they started."""
    for process in processes:
        with suppress(ProcessLookupError, PermissionError):  # it has ended
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.kill()
        process.join()


def _run(script: str, arguments: Sequence[str], said: str, environment: dict[str, str]) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = [script, *arguments]
    ENDING.__init__()  # it has read the server's process and environment
    runpy.run_path(script, run_name="__main__")
