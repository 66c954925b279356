"""How a run ends before its time, seen from outside: real processes under the launcher, of a recipe that only ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from instructkit.runs import ranks
from instructkit.runs.ending import ENDING
from instructkit.runs.log import RunLog
from instructkit.runs.run import Run
from tests.training.mini import command, end_all, environment

TOY = str(Path(__file__).with_name("toy.py"))
TIMEOUT = 150


@contextmanager
def started(ranks: int, *words: str, program: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*(program or command(ranks)), TOY, *words],
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


def ended(ranks: int, *words: str) -> tuple[int, list[str]]:
    """Exit code and lines of a run that ends by itself."""
    with started(ranks, *words) as process:
        said, _ = process.communicate(timeout=TIMEOUT)
        return process.returncode, said.splitlines()


def stopped(
    ranks: int, what: str, folder: Path, send: Callable[[subprocess.Popen[str]], object], program: Sequence[str] = ()
) -> tuple[int, list[str]]:
    """Exit code and lines of a run that gets a signal when it is at work; all its processes have ended."""
    with started(ranks, f"output={folder}", f"what={what}", program=program) as process:
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


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_any_rank_ends_all_in_one_line(rank: int, tmp_path: Path) -> None:
    code, lines = ended(2, f"output={tmp_path}", f"what=user-{rank}")
    assert code == 2, lines
    line = f"error: rank {rank}: data/train.jsonl: line 7: key image: missing"
    assert [said for said in lines if said.startswith("error")] == [line]
    assert "Traceback" not in "\n".join(lines)
    assert line in (tmp_path / "run.log").read_text().splitlines()


def test_an_error_that_is_nobodys_fault_has_its_traceback_in_the_log(tmp_path: Path) -> None:
    code, lines = ended(2, f"output={tmp_path}", "what=crash-1")
    assert code == 1, lines
    line = f"error: rank 1: ValueError: of nobody's making over two lines; the traceback is in {tmp_path / 'run.log'}"
    assert [said for said in lines if said.startswith("error")] == [line]
    assert "Traceback" not in "\n".join(lines)
    assert "\nValueError: of nobody's making\n" in (tmp_path / "run.log").read_text()


def test_a_full_disk_on_one_rank_is_one_line(tmp_path: Path) -> None:
    code, lines = ended(2, f"output={tmp_path}", "what=full-0")
    assert code == 2, lines
    line = "error: rank 0: runs/x/model.safetensors: cannot be read or written (No space left on device)"
    assert [said for said in lines if said.startswith("error")] == [line]
    assert "Traceback" not in "\n".join(lines)


def test_one_process_needs_no_port_and_two_say_that_theirs_is_taken(tmp_path: Path) -> None:
    with closing(socket.create_server(("", 0))) as taken:
        port = str(taken.getsockname()[1])
        for words, ranks in (([sys.executable], 1), ([*command(2)[:-1], port], 2)):
            done = subprocess.run(
                [*words, TOY, f"output={tmp_path / str(ranks)}"],
                env={**environment(), "MASTER_PORT": port},
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
            )
            said = (done.stdout + done.stderr).splitlines()
            assert "Traceback" not in "\n".join(said), said
            errors = [line for line in said if line.startswith("error")]
            if ranks == 1:
                assert (done.returncode, errors) == (0, []), said
            else:
                assert done.returncode == 2, said
                assert len(errors) == 1
                assert errors[0].startswith(f"error: port {port} is used by another program on this machine")


def group(number: int) -> Callable[[subprocess.Popen[str]], None]:
    return lambda process: os.killpg(process.pid, number)


@pytest.mark.parametrize(("number", "ranks"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_a_signal_ends_the_run_behind_its_step(number: signal.Signals, ranks: int, tmp_path: Path) -> None:
    code, lines = stopped(ranks, "steps", tmp_path, group(number))
    said = "\n".join(lines)
    assert "Traceback" not in said.replace("deepspeed", "", 0), said
    assert f"{number.name}: the run stops behind this step" in lines
    steps = {(tmp_path / f"saved-{rank}").read_text() for rank in range(ranks)}
    assert len(steps) == 1, "all ranks save the same step"
    assert [line for line in lines if line.startswith("stopped")] == [
        f"stopped behind step {steps.pop()}; resume=true goes on"
    ]
    if ranks == 1:
        assert code == 128 + number


@pytest.mark.parametrize(
    ("number", "whole"),
    [(signal.SIGINT, True), (signal.SIGTERM, False)],
    ids=["Ctrl-C, which the terminal sends to all", "SIGTERM to the launcher alone"],
)
def test_our_launcher_ends_behind_its_ranks_without_a_traceback(
    number: signal.Signals, whole: bool, tmp_path: Path
) -> None:
    send = group(number) if whole else lambda process: process.send_signal(number)
    options = command(2)[1:]
    code, lines = stopped(2, "steps", tmp_path, send, [sys.executable, "-m", "instructkit.runs.launch", *options])
    assert "Traceback" not in "\n".join(lines), lines
    assert code == 128 + number, lines
    assert {(tmp_path / f"saved-{rank}").exists() for rank in range(2)} == {True}


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


def test_ranks_end_with_their_launcher(tmp_path: Path) -> None:
    code, lines = stopped(2, "steps", tmp_path, lambda process: process.send_signal(signal.SIGKILL))
    assert code == -signal.SIGKILL
    assert {(tmp_path / f"saved-{rank}").exists() for rank in range(2)} == {True}
    assert len([line for line in lines if line.startswith("stopped behind step")]) == 1, lines


def test_a_signal_behind_the_last_look_ends_the_run_when_its_steps_are_done(tmp_path: Path) -> None:
    code, lines = ended(1, f"output={tmp_path}", "what=late")
    assert code == 128 + signal.SIGTERM, lines
    assert lines[-1] == "stopped by SIGTERM; resume=true goes on from the last checkpoint"
    assert "done" not in lines


def test_a_signal_where_ranks_wait_ends_them_at_once(tmp_path: Path) -> None:
    _, lines = stopped(2, "wait", tmp_path, group(signal.SIGTERM))
    assert [line for line in lines if line.startswith("stopped")] == ["stopped by SIGTERM; no step is done yet"]
    assert "Traceback" not in "\n".join(lines), lines


def test_an_interrupt_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """As behind nohup or `&` of a script."""

    def send(process: subprocess.Popen[str]) -> None:
        os.killpg(process.pid, signal.SIGINT)
        os.killpg(process.pid, signal.SIGTERM)

    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code, lines = stopped(1, "steps", tmp_path, send)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert code == 128 + signal.SIGTERM, lines
    assert "SIGINT" not in "\n".join(lines)


def test_a_killed_rank_ends_the_others(tmp_path: Path) -> None:
    code, lines = ended(2, f"output={tmp_path}", "what=killed-0")
    assert code != 0
    assert "Traceback" not in "\n".join(lines), lines


def test_two_runs_in_one_folder_and_a_run_behind_another(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    with started(1, f"output={folder}", "what=steps") as process:
        assert process.stdout is not None
        assert any(line.startswith("ready") for line in process.stdout)
        code, lines = ended(1, f"output={folder}")
        assert code == 2
        (error,) = (line for line in lines if line.startswith("error"))
        assert error.startswith(f"error: {folder}: another run writes here (process {process.pid} on ")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        code, lines = ended(1, f"output={folder}")  # the killed one holds it no longer
        assert code == 0, lines
    code, lines = ended(1, f"output={folder}")
    assert code == 0, lines
    aside = tmp_path / "x.1"
    assert f"output    an earlier run lay in {folder}; the whole of it lies in {aside} now" in lines
    assert (aside / "log.jsonl").read_text() == (folder / "log.jsonl").read_text() != ""
    assert "resume=true" not in (folder / "run.log").read_text()
    code, lines = ended(1, f"output={folder}", "resume=true")
    assert code == 0, lines
    assert not (tmp_path / "x.2").exists()
    log = (folder / "run.log").read_text()
    assert log.count("\nversions  instructkit ") >= 1
    assert "resume=true" in log
