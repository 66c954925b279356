"""Work in several processes: forked, so that they start with what is loaded, and never more tasks than processes.

Each process talks with its parent over a pipe of its own. A parent that is killed takes its processes along at once:
all of them watch a pipe whose other end only the parent holds.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from instructkit.errors import UserError

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_processes(work: Callable[[T], R], tasks: Iterable[T], jobs: int) -> Iterator[R]:
    """Do every task, `jobs` at a time; yields the results in the order in which they are ready.

    Args:
        work: what to do; runs in a fork of this process, with one job or a single task in this process itself.
        tasks: read here, one when a process is free for it. Tasks and results travel pickled.
        jobs: number of processes.

    Raises:
        UserError: a process was killed from outside.
        Exception: whatever `work` raises.
    """
    tasks = iter(tasks)
    first = list(islice(tasks, min(jobs, 2)))
    if len(first) < 2:  # of one task alone the fork would cost more than it saves
        yield from map(work, chain(first, tasks))
        return
    processes: dict[Connection, BaseProcess] = {}
    life = os.pipe()
    try:
        for _ in range(jobs):
            _fork(work, processes, life)
        free, busy = list(processes), set[Connection]()
        for task in chain(first, tasks):
            while not free:
                for connection in wait(list(busy)):
                    assert isinstance(connection, Connection)
                    yield _receive(connection)
                    busy.remove(connection)
                    free.append(connection)
            connection = free.pop()
            _send(connection, task)
            busy.add(connection)
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                yield _receive(connection)
                busy.remove(connection)
    except BaseException:
        for process in processes.values():
            process.kill()
        raise
    finally:
        for connection, process in processes.items():
            connection.close()
            process.join()
        os.close(life[0])
        os.close(life[1])


def _fork(work: Callable[[Any], Any], processes: dict[Connection, BaseProcess], life: tuple[int, int]) -> None:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(work, there, [*processes, here], life), daemon=True)
    # Blocked until it is ignored: an interrupt in between would end the process with a traceback of its own.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    there.close()
    processes[here] = process


def _serve(
    work: Callable[[Any], Any], connection: Connection, inherited: list[Connection], life: tuple[int, int]
) -> None:
    """The life of a process: a task in, a result or an exception out, until the pipe ends."""
    gc.freeze()  # what is loaded stays: no collection looks at it, or copies its pages by doing so
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt goes to the whole group; the parent ends us
    for other in inherited:
        other.close()
    os.close(life[1])
    threading.Thread(target=_end_with_parent, args=(life[0],), daemon=True).start()
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            answer: tuple[Any, BaseException | None] = (work(task), None)
        except Exception as error:
            answer = (None, _sendable(error))
        try:
            connection.send(answer)
        except BrokenPipeError:
            return


def _end_with_parent(life: int) -> None:
    os.read(life, 1)  # nothing is ever written: it returns when the parent is gone
    os._exit(1)


def _sendable(error: Exception) -> Exception:
    """The exception itself if it can be pickled, with where it arose; else one with its text."""
    trace = traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever an exception's own pickling may raise
        return RuntimeError(trace)
    if not isinstance(error, UserError) and hasattr(error, "add_note"):
        error.add_note(f"in a worker process:\n{trace}")
    return error


def _send(connection: Connection, task: object) -> None:
    try:
        connection.send(task)
    except (BrokenPipeError, ConnectionResetError) as error:
        raise _killed() from error


def _receive(connection: Connection) -> Any:
    try:
        result, error = connection.recv()
    except (EOFError, ConnectionResetError) as gone:
        raise _killed() from gone
    if error is not None:
        raise error
    return result


def _killed() -> UserError:
    return UserError(
        "a worker process was killed, perhaps for lack of memory; run the same command again, with --jobs 1"
    )
