"""Two machines: network namespaces joined by a wire.

`pytest -m full` starts the ranks with the lines that README gives for starting without ssh.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from tests import forks
from tests.ports import free_port
from tests.training.mini import end_all, environment, losses, ranks_of, run_all, write_model, write_releases

RECIPE = Path(__file__).parents[2] / "recipes" / "instruct.py"
ON_MACHINE = """
import ctypes, os, runpy, sys

name, recipe, *words = sys.argv[1:]
with open(f"/var/run/netns/{name}") as place:
    entered = ctypes.CDLL(None, use_errno=True).setns(place.fileno(), 0x40000000)  # CLONE_NEWNET
assert entered == 0, os.strerror(ctypes.get_errno())
sys.argv = [recipe, *words]
runpy.run_path(recipe, run_name="__main__")
"""
"""A recipe in a network namespace, as behind `ip netns exec`."""
ADDRESSES = ("10.213.7.1", "10.213.7.2")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def machines() -> Iterator[list[str]]:
    """Names of two network namespaces; in each the wire is called `wire`."""
    names = [f"instructkit-{os.getpid()}-{number}" for number in range(2)]
    with ExitStack() as stack:
        try:
            for name in names:
                ip("netns", "add", name)
                stack.callback(ip, "netns", "del", name)
            ends = [("wire", "netns", name) for name in names]
            ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
            for name, address in zip(names, ADDRESSES, strict=True):
                ip("-n", name, "addr", "add", f"{address}/24", "dev", "wire")
                ip("-n", name, "link", "set", "wire", "up")
                ip("-n", name, "link", "set", "lo", "up")
        except FileNotFoundError:
            pytest.skip("no `ip` command (package iproute2)")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces cannot be made here: {error.stderr.strip()}")
        yield names


def launched(machines: list[str], folder: Path, words: list[str]) -> list[subprocess.Popen[str]]:
    """The recipe under a launcher on each machine, a rank each; what a machine says goes to `folder/said-N`."""
    hosts = folder / "hostfile"
    hosts.write_text("left slots=1\nright slots=1\n")
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    environ = {**environment(), "GLOO_SOCKET_IFNAME": "wire"}
    port = str(free_port())
    processes = []
    for number, name in enumerate(machines):
        place = ["--hostfile", str(hosts), "--no_ssh", "--node_rank", str(number), "--master_addr", ADDRESSES[0]]
        command = [launcher, *place, "--master_port", port, str(RECIPE), *words, f"output={folder / 'run'}"]
        with (folder / f"said-{number}").open("w") as said:
            processes.append(
                subprocess.Popen(
                    ["ip", "netns", "exec", name, *command],
                    env=environ,
                    stdout=said,
                    stderr=said,
                    text=True,
                    start_new_session=True,
                )
            )
    return processes


def forked(machines: list[str], folder: Path, words: list[str]) -> list[ForkServerProcess]:
    """The recipe's ranks themselves, one on each machine; what a machine says goes to `folder/said-N`."""
    script = folder / "on_machine.py"
    script.write_text(ON_MACHINE)
    meeting = {"MASTER_ADDR": ADDRESSES[0], "GLOO_SOCKET_IFNAME": "wire", "LOCAL_SIZE": "1", "LOCAL_RANK": "0"}
    processes = []
    for number, (name, environ) in enumerate(zip(machines, ranks_of(2), strict=True)):
        arguments = [name, str(RECIPE), *words, f"output={folder / 'run'}"]
        processes += forks.start(script, arguments, folder / f"said-{number}", [{**environ, **meeting}])
    return processes


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("machines")
    sizes = ["batch_size=4", "group_size=2", "log_every=1", "checkpoint_every=0"]
    mini = ["--config", str(Path(__file__).with_name("mini.yaml"))]
    return [*mini, *write_releases(folder), f"model.name={write_model(folder / 'model')}", *sizes]


def said(folder: Path) -> str:
    return "\n".join((folder / f"said-{number}").read_text()[-4000:] for number in range(2))


@pytest.mark.full
def test_two_machines_under_the_launcher_have_the_losses_of_two_ranks_on_one(
    machines: list[str], words: list[str], tmp_path: Path
) -> None:
    processes = launched(machines, tmp_path, words)
    try:
        codes = [process.wait(300) for process in processes]
    finally:
        for process in processes:
            end_all(process)
    assert codes == [0, 0], said(tmp_path)
    run_all(2, tmp_path, {"one": words[2:]})
    assert losses(tmp_path / "run") == losses(tmp_path / "one")


def test_two_machines_have_the_losses_of_two_ranks_on_one(
    machines: list[str], words: list[str], tmp_path: Path
) -> None:
    processes = forked(machines, tmp_path, words)
    try:
        for process in processes:
            process.join(300)
        assert [process.exitcode for process in processes] == [0, 0], said(tmp_path)
    finally:
        forks.end(processes)
    run_all(2, tmp_path, {"one": words[2:]})
    assert losses(tmp_path / "run") == losses(tmp_path / "one")


def check_lost(folder: Path) -> None:
    """Each machine has said in a line that the other one's rank is lost."""
    for number, lost in ((0, "rank 1"), (1, "rank 0")):
        lines = (folder / f"said-{number}").read_text().splitlines()
        assert [line for line in lines if line.startswith(f"error: lost {lost} on ")], said(folder)


def wait_for_steps(folder: Path, ended: Callable[[], list[int | None]]) -> None:
    log = folder / "run" / "log.jsonl"
    while not log.exists() or not log.read_text():
        assert ended() == [None, None], said(folder)
        time.sleep(0.1)


@pytest.mark.full
def test_launchers_on_both_sides_of_a_cut_wire_end_within_a_minute(
    machines: list[str], words: list[str], tmp_path: Path
) -> None:
    processes = launched(machines, tmp_path, [*words, "max_steps=100000"])
    try:
        wait_for_steps(tmp_path, lambda: [process.poll() for process in processes])
        ip("-n", machines[0], "link", "set", "wire", "down")
        codes = [process.wait(60) for process in processes]
    finally:
        for process in processes:
            end_all(process)
    assert 0 not in codes
    check_lost(tmp_path)


def test_both_sides_of_a_cut_wire_end_within_a_minute_and_say_who_is_lost(
    machines: list[str], words: list[str], tmp_path: Path
) -> None:
    processes = forked(machines, tmp_path, [*words, "max_steps=100000"])
    try:
        wait_for_steps(tmp_path, lambda: [process.exitcode for process in processes])
        ip("-n", machines[0], "link", "set", "wire", "down")
        for process in processes:
            process.join(60)
        assert all(process.exitcode for process in processes), said(tmp_path)
    finally:
        forks.end(processes)
    check_lost(tmp_path)
