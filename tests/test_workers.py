import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from instructkit.conversion.processes import in_processes
from instructkit.errors import UserError


def square(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_every_task_is_done_once(jobs: int) -> None:
    results = list(in_processes(square, range(40), jobs))
    assert sorted(value for value, _ in results) == [number * number for number in range(40)]
    elsewhere = {process for _, process in results} - {os.getpid()}
    assert bool(elsewhere) == (jobs > 1)


def test_a_single_task_is_done_in_this_process() -> None:
    assert list(in_processes(square, [3], 4)) == [(9, os.getpid())]
    assert list(in_processes(square, [], 4)) == []


def test_no_more_tasks_are_read_than_there_are_processes() -> None:
    read = 0

    def tasks() -> Iterator[int]:
        nonlocal read
        for number in range(20):
            read += 1
            yield number

    for done, _ in enumerate(in_processes(square, tasks(), 2), 1):
        assert read <= done + 2 + 1


def test_an_error_in_a_process_arrives_here() -> None:
    def fails(number: int) -> int:
        if number == 3:
            raise UserError("three is bad")
        return number

    with pytest.raises(UserError, match="three is bad"):
        list(in_processes(fails, range(10), 2))


def test_an_error_that_cannot_be_pickled_arrives_as_text() -> None:
    class Odd(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(one)

    def fails(number: int) -> int:
        raise Odd(number, number)

    with pytest.raises(RuntimeError, match="Odd"):
        list(in_processes(fails, range(3), 2))


def test_a_killed_process_is_an_error() -> None:
    def dies(number: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return number

    with pytest.raises(UserError, match="killed"):
        list(in_processes(dies, range(3), 2))


def test_an_interrupt_does_not_end_a_process_that_has_only_just_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gc.freeze", lambda: os.kill(os.getpid(), signal.SIGINT))  # the first thing that it does
    assert sorted(value for value, _ in in_processes(square, range(3), 2)) == [0, 1, 4]


def test_processes_end_when_their_parent_is_killed() -> None:
    script = """
        import os, time
        from instructkit.conversion.processes import in_processes

        def sleeps(number):
            os.write(1, b".")
            time.sleep(3600)

        list(in_processes(sleeps, range(2), 2))
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.read(2) == b".."  # both are at work
        parent.kill()
        parent.communicate(timeout=60)  # the pipe ends when the last process that could write to it has ended


def test_tests_can_interrupt_what_they_start_when_they_themselves_ignore_interrupts(tmp_path: Path) -> None:
    test = tmp_path / "test_child.py"
    test.write_text(
        "import signal, subprocess, sys\n"
        "def test_child():\n"
        "    script = 'import signal; signal.raise_signal(signal.SIGINT)'\n"
        "    assert subprocess.run([sys.executable, '-c', script]).returncode == -signal.SIGINT\n"
    )
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    started = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)],
        cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # as by nohup and &
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert started.returncode == 0, started.stdout
