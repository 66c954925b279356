"""How a run ends before its time, seen from outside: real processes of a recipe that only ends.

Where what is looked at is the rank's own end, the ranks are forked (`tests.forks`); where it is what DeepSpeed's
launcher and its ranks do to each other, the launcher starts them.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from instructkit.runs import ranks
from instructkit.runs.ending import ENDING
from instructkit.runs.log import RunLog
from instructkit.runs.run import Run
from tests import forks
from tests.training.mini import command, end_all, environment, ranks_of

TOY = Path(__file__).with_name("toy.py")
TIMEOUT = 150


# ---- ranks alone ----


@contextmanager
def forked(
    count: int, folder: Path, *words: str, script: Path = TOY, **environ: str
) -> Iterator[tuple[list[ForkServerProcess], Path]]:
    """Ranks, and the file of what they say; one alone knows nothing of ranks, as a script that a shell starts."""
    said = folder / f"said-{len(list(folder.glob('said-*')))}"
    said.touch()
    environments = [environment()] if count == 1 else ranks_of(count)
    processes = forks.start(script, words, said, [{**each, **environ} for each in environments])
    try:
        yield processes, said
    finally:
        forks.end(processes)


def codes(processes: Sequence[ForkServerProcess]) -> list[int | None]:
    """Exit codes, when all have ended."""
    for process in processes:
        process.join(TIMEOUT)
    return [process.exitcode for process in processes]


def ended(folder: Path, *words: str, **environ: str) -> tuple[int | None, list[str]]:
    """Exit code and lines of a run of one rank that ends by itself; the lines go to a file in `folder`."""
    with forked(1, folder, *words, **environ) as (processes, said):
        (code,) = codes(processes)
        return code, said.read_text().splitlines()


def wait_for_work(processes: Sequence[ForkServerProcess], said: Path) -> None:
    while "ready\n" not in said.read_text():
        assert [process.exitcode for process in processes] == [None] * len(processes), said.read_text()
        time.sleep(0.02)


def stopped(
    count: int, what: str, folder: Path, *numbers: signal.Signals, script: Path = TOY
) -> tuple[list[int | None], list[str]]:
    """Exit codes and lines of ranks that all get these signals when they are at work."""
    with forked(count, folder, f"output={folder / 'run'}", f"what={what}", script=script) as (processes, said):
        wait_for_work(processes, said)
        for number in numbers:
            for process in processes:
                os.kill(process.pid or 0, number)
        return codes(processes), said.read_text().splitlines()


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_any_rank_ends_all_in_one_line(rank: int, tmp_path: Path) -> None:
    with forked(2, tmp_path, f"output={tmp_path / 'run'}", f"what=user-{rank}") as (processes, said):
        assert codes(processes) == [2, 2], said.read_text()
        lines = said.read_text().splitlines()
    line = f"error: rank {rank}: data/train.jsonl: line 7: key image: missing"
    assert [said for said in lines if said.startswith("error")] == [line]
    assert "Traceback" not in "\n".join(lines)
    assert line in (tmp_path / "run" / "run.log").read_text().splitlines()


def test_an_error_that_is_nobodys_fault_has_its_traceback_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "run" / "run.log"
    with forked(2, tmp_path, f"output={log.parent}", "what=crash-1") as (processes, said):
        assert codes(processes) == [1, 1], said.read_text()
        lines = said.read_text().splitlines()
    line = f"error: rank 1: ValueError: of nobody's making over two lines; the traceback is in {log}"
    assert [said for said in lines if said.startswith("error")] == [line]
    assert "Traceback" not in "\n".join(lines)
    assert "\nValueError: of nobody's making\n" in log.read_text()


def test_a_full_disk_on_one_rank_is_one_line(tmp_path: Path) -> None:
    with forked(2, tmp_path, f"output={tmp_path / 'run'}", "what=full-0") as (processes, said):
        assert codes(processes) == [2, 2], said.read_text()
        lines = said.read_text().splitlines()
    line = "error: rank 0: runs/x/model.safetensors: cannot be read or written (No space left on device)"
    assert [said for said in lines if said.startswith("error")] == [line]
    assert "Traceback" not in "\n".join(lines)


def test_one_process_needs_no_port_and_two_say_that_theirs_is_taken(tmp_path: Path) -> None:
    with closing(socket.create_server(("", 0))) as taken:
        port = str(taken.getsockname()[1])
        code, lines = ended(tmp_path, f"output={tmp_path / '1'}", MASTER_PORT=port)
        assert code == 0, lines
        assert "Traceback" not in "\n".join(lines), lines
        with forked(2, tmp_path, f"output={tmp_path / '2'}", MASTER_PORT=port) as (processes, said):
            assert codes(processes[:1]) == [2], said.read_text()  # the second would go on looking for the first
            lines = said.read_text().splitlines()
        assert "Traceback" not in "\n".join(lines), lines
        (error,) = (line for line in lines if line.startswith("error"))
        assert error.startswith(f"error: port {port} is used by another program on this machine")


@pytest.mark.parametrize(("number", "count"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_a_signal_ends_the_run_behind_its_step(number: signal.Signals, count: int, tmp_path: Path) -> None:
    found, lines = stopped(count, "steps", tmp_path, number)
    assert "Traceback" not in "\n".join(lines), lines
    assert f"{number.name}: the run stops behind this step" in lines
    steps = {(tmp_path / "run" / f"saved-{rank}").read_text() for rank in range(count)}
    assert len(steps) == 1, "all ranks save the same step"
    assert [line for line in lines if line.startswith("stopped")] == [
        f"stopped behind step {steps.pop()}; resume=true goes on"
    ]
    assert found == [128 + number] * count


def test_a_signal_that_comes_while_ranks_agree_is_heard_after_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ENDING, "asked", 0)
    run = Run(None, tmp_path, 0, 2, RunLog(tmp_path, {}, None))

    def interrupted(asked: Sequence[float]) -> list[float]:
        ENDING.asked = signal.SIGTERM  # the other rank has none, and this one's was read before
        return list(asked)

    monkeypatch.setattr(ranks, "max_over_ranks", interrupted)
    assert not run.stop_asked()
    assert run.stop_asked()
    assert ENDING.asked == signal.SIGTERM


def test_a_console_that_nobody_reads_any_more_keeps_no_run_from_ending_in_a_line(tmp_path: Path) -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    words = [sys.executable, str(TOY), f"output={tmp_path / 'x'}", "what=steps"]
    process = subprocess.Popen(words, env=environment(), text=True, **pipes)
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "ready\n" in process.stdout
        process.stderr.close()
        process.terminate()
        process.stdout.read()
        assert process.wait(TIMEOUT) == 128 + signal.SIGTERM
    finally:
        end_all(process)
    log = (tmp_path / "x" / "run.log").read_text()
    assert "stopped behind step " in log
    assert "Traceback" not in log


def test_a_signal_behind_the_last_look_ends_the_run_when_its_steps_are_done(tmp_path: Path) -> None:
    code, lines = ended(tmp_path, f"output={tmp_path / 'run'}", "what=late")
    assert code == 128 + signal.SIGTERM, lines
    assert lines[-1] == "stopped by SIGTERM; resume=true goes on from the last checkpoint"
    assert "done" not in lines


def test_a_signal_where_ranks_wait_ends_them_at_once(tmp_path: Path) -> None:
    found, lines = stopped(2, "wait", tmp_path, signal.SIGTERM)
    assert found == [128 + signal.SIGTERM] * 2
    assert [line for line in lines if line.startswith("stopped")] == ["stopped by SIGTERM; no step is done yet"]
    assert "Traceback" not in "\n".join(lines), lines


IGNORING = """
import runpy, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
runpy.run_path({toy!r}, run_name="__main__")
"""


def test_an_interrupt_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """As behind nohup or `&` of a script."""
    script = tmp_path / "ignoring.py"
    script.write_text(IGNORING.format(toy=str(TOY)))
    found, lines = stopped(1, "steps", tmp_path, signal.SIGINT, signal.SIGTERM, script=script)
    assert found == [128 + signal.SIGTERM], lines
    assert "SIGINT" not in "\n".join(lines)


def test_a_killed_rank_ends_the_others(tmp_path: Path) -> None:
    with forked(2, tmp_path, f"output={tmp_path / 'run'}", "what=killed-0") as (processes, said):
        found, lines = codes(processes), said.read_text().splitlines()
    assert found[0] == -signal.SIGKILL, lines
    assert found[1] not in (0, None), lines
    assert len([line for line in lines if line.startswith("error")]) == 1, lines
    assert "Traceback" not in "\n".join(lines), lines


def test_two_runs_in_one_folder_and_a_run_behind_another(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    with forked(1, tmp_path, f"output={folder}", "what=steps") as (processes, said):
        wait_for_work(processes, said)
        code, lines = ended(tmp_path, f"output={folder}")
        assert code == 2
        (error,) = (line for line in lines if line.startswith("error"))
        assert error.startswith(f"error: {folder}: another run writes here (process {processes[0].pid} on ")
        processes[0].kill()
        processes[0].join()
        code, lines = ended(tmp_path, f"output={folder}")  # the killed one holds it no longer
        assert code == 0, lines
    code, lines = ended(tmp_path, f"output={folder}")
    assert code == 0, lines
    aside = tmp_path / "x.1"
    assert f"output    an earlier run lay in {folder}; the whole of it lies in {aside} now" in lines
    assert (aside / "log.jsonl").read_text() == (folder / "log.jsonl").read_text() != ""
    assert "resume=true" not in (folder / "run.log").read_text()
    code, lines = ended(tmp_path, f"output={folder}", "resume=true")
    assert code == 0, lines
    assert not (tmp_path / "x.2").exists()
    log = (folder / "run.log").read_text()
    assert log.count("\nversions  instructkit ") >= 1
    assert "resume=true" in log


# ---- ranks under DeepSpeed's launcher ----


@contextmanager
def launched(folder: Path, what: str, program: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
    """The launcher of two ranks, itself or as a program of ours, in a session of its own."""
    process = subprocess.Popen(
        [*(program or command(2)), str(TOY), f"output={folder}", f"what={what}"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        end_all(process)


def stopped_under(
    folder: Path, what: str, send: Callable[[subprocess.Popen[str]], object], program: Sequence[str] = ()
) -> tuple[int, list[str]]:
    """Exit code and lines of a launcher that gets a signal when its ranks are at work; all its processes have ended."""
    with launched(folder, what, program) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if line.startswith("ready"):
                break
        assert lines[-1:] == ["ready"], lines
        send(process)
        said, _ = process.communicate(timeout=TIMEOUT)  # ends when none of them holds the pipe any more
        return process.returncode, lines + said.splitlines()


def group(number: int) -> Callable[[subprocess.Popen[str]], None]:
    return lambda process: os.killpg(process.pid, number)


@pytest.mark.full
@pytest.mark.parametrize(("what", "expected"), [("user-1", {2}), ("crash-0", {1}), ("killed-0", {1, 247})])
def test_an_error_of_a_rank_ends_its_launcher_in_a_line(what: str, expected: set[int], tmp_path: Path) -> None:
    with launched(tmp_path, what) as process:
        said, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode in expected, said
    assert "Traceback" not in said
    errors = [line for line in said.splitlines() if line.startswith("error")]
    assert len(errors) == 1 or (what == "killed-0" and not errors), "the launcher may end the other rank first"


@pytest.mark.full
def test_a_signal_to_all_ends_a_launched_run_in_a_line(tmp_path: Path) -> None:
    for what, line in (("steps", "stopped behind step "), ("wait", "stopped by SIGTERM; no step is done yet")):
        _, lines = stopped_under(tmp_path / what, what, group(signal.SIGTERM))
        (told,) = (line for line in lines if line.startswith("stopped"))
        assert told.startswith(line)
        assert "Traceback" not in "\n".join(lines), lines


@pytest.mark.parametrize(
    ("number", "whole"),
    [
        pytest.param(signal.SIGINT, True, marks=pytest.mark.full, id="Ctrl-C, which the terminal sends to all"),
        pytest.param(signal.SIGTERM, False, id="SIGTERM to the launcher alone"),
    ],
)
def test_our_launcher_ends_behind_its_ranks_without_a_traceback(
    number: signal.Signals, whole: bool, tmp_path: Path
) -> None:
    send = group(number) if whole else lambda process: process.send_signal(number)
    options = command(2)[1:]
    code, lines = stopped_under(tmp_path, "steps", send, [sys.executable, "-m", "instructkit.runs.launch", *options])
    assert "Traceback" not in "\n".join(lines), lines
    assert code == 128 + number, lines
    assert {(tmp_path / f"saved-{rank}").exists() for rank in range(2)} == {True}


@pytest.mark.full
def test_ranks_end_with_their_launcher(tmp_path: Path) -> None:
    code, lines = stopped_under(tmp_path, "steps", lambda process: process.send_signal(signal.SIGKILL))
    assert code == -signal.SIGKILL
    assert {(tmp_path / f"saved-{rank}").exists() for rank in range(2)} == {True}
    assert len([line for line in lines if line.startswith("stopped behind step")]) == 1, lines
