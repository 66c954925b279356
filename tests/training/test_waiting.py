"""Ranks that wait for one that is long at work: they look at the store, and no collective runs out of time."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from instructkit.errors import UserError
from instructkit.runs import ranks as starting_ranks
from tests import forks
from tests.training.mini import ROOT, ranks_of

TIMEOUT = 120

BEGIN = """
import os, sys, time
import torch.distributed as dist
from instructkit.runs import waiting
from instructkit.errors import UserError
from instructkit.runs.ranks import start_ranks

rank, world = start_ranks()
store = waiting._get_default_store()
for name in ("all_reduce", "barrier", "broadcast", "broadcast_object_list", "all_gather", "all_gather_object"):
    setattr(dist, name, None)  # a collective would run out of time

looks, sleep = 0, time.sleep
def look(seconds):
    global looks
    looks += 1
    if looks == 12:
        store.set(f"patient/{rank}", "")
    sleep(min(seconds, 0.001))
waiting.time.sleep = look

def until(*others):  # ends only when these ranks have looked a dozen times and still wait
    for other in others:
        store.wait([f"patient/{other}"])
"""


def ended(code: str, folder: Path, ranks: int, machines: int = 1) -> list[tuple[int | None, list[str], str]]:
    """Exit code, lines that begin with ">", and all that was said, of each rank."""
    script = folder / "script.py"
    script.write_text(BEGIN + code)
    processes, found = [], []
    try:
        for rank, environ in enumerate(ranks_of(ranks)):
            local = {"LOCAL_RANK": str(rank % (ranks // machines)), "LOCAL_SIZE": str(ranks // machines)}
            processes += forks.start(script, [], folder / f"said-{rank}", [{**environ, **local}])
        for rank, process in enumerate(processes):
            process.join(TIMEOUT)
            said = (folder / f"said-{rank}").read_text()
            found.append((process.exitcode, [line for line in said.splitlines() if line.startswith("> ")], said))
    finally:
        forks.end(processes)
    return found


def test_all_ranks_wait_for_the_first_and_get_its_result_or_its_error(tmp_path: Path) -> None:
    code = """
def work():
    until(1, 2)
    return {"rank": rank}
print("> ", waiting.on_first_rank(work))
def fail():
    raise UserError("no such release")
try:
    waiting.on_first_rank(fail)
except UserError as error:
    print("> ", error)
print("> ", waiting.on_first_rank(lambda: rank + 7))
"""
    for code_, said, complaint in ended(code, tmp_path, 3):
        assert code_ == 0, complaint
        assert said == [">  {'rank': 0}", ">  no such release", ">  7"]


def test_all_ranks_meet_whichever_is_last(tmp_path: Path) -> None:
    code = """
for late in range(world):
    looks = 0
    if rank == late:
        until(*(other for other in range(world) if other != late))
    waiting.meet()
    store.delete_key(f"patient/{rank}")
    waiting.meet()
met = store.add("met", 0)
waiting.meet()  # the first rank keeps the store
print("> ", met)
"""
    for code_, said, complaint in ended(code, tmp_path, 3):
        assert code_ == 0, complaint
        assert said == [">  0"]


def test_the_first_rank_of_each_machine_goes_before_its_others(tmp_path: Path) -> None:
    code = """
first = int(os.environ["LOCAL_RANK"]) == 0
def work():
    if first:
        until(1, 3)
        return store.add("firsts", 1)
    return store.add("firsts", 0)
print("> ", first, waiting.first_on_machine(work))
"""
    found = ended(code, tmp_path, 4, machines=2)
    assert all(code_ == 0 for code_, *_ in found), found
    assert sorted(said[0] for _, said, _ in found[::2]) == [">  True 1", ">  True 2"]
    assert [said for _, said, _ in found[1::2]] == [[">  False 2"]] * 2


def test_ranks_that_wait_for_one_that_has_died_end_with_a_line(tmp_path: Path) -> None:
    code = """
def die():
    until(1)
    os._exit(3)
try:
    waiting.on_first_rank(die)
except UserError as error:
    print("> ", error)
"""
    first, second = ended(code, tmp_path, 2)
    assert first[0] == 3
    assert second[0] == 0, second
    assert second[1] == [">  rank 1 waited for another rank, which has ended; what that one wrote says why"]


def test_nothing_in_the_package_waits_in_a_collective() -> None:
    files = [*(ROOT / "instructkit").rglob("*.py"), *(ROOT / "recipes").glob("*.py")]
    assert len(files) > 50
    waits = re.compile(r"dist\.(barrier|monitored_barrier|broadcast_object_list|scatter_object_list)\(")
    assert [str(file) for file in files if waits.search(file.read_text())] == []


# ---- devices ----


def starting(monkeypatch: pytest.MonkeyPatch, gpus: int, **environ: str) -> list[Any]:
    """What `start_ranks` does in order, on a machine that has so many GPUs."""
    done: list[Any] = []
    accelerator = SimpleNamespace(
        device_name=lambda: "cuda", device_count=lambda: gpus, set_device=lambda number: done.append(number)
    )
    monkeypatch.setattr("deepspeed.accelerator.get_accelerator", lambda: accelerator)
    monkeypatch.setattr("deepspeed.init_distributed", lambda **_: done.append("joined"))
    monkeypatch.setattr(starting_ranks.dist, "is_initialized", lambda: False)
    monkeypatch.setattr(starting_ranks.dist, "get_rank", lambda: int(environ["RANK"]))
    monkeypatch.setattr(starting_ranks.dist, "get_world_size", lambda: int(environ["WORLD_SIZE"]))
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    starting_ranks.start_ranks()
    return done


@pytest.mark.parametrize("local", [0, 3])
def test_a_rank_takes_its_own_gpu_before_it_joins_the_others(monkeypatch: pytest.MonkeyPatch, local: int) -> None:
    assert starting(monkeypatch, 4, RANK=str(8 + local), WORLD_SIZE="12", LOCAL_RANK=str(local)) == [local, "joined"]


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="rank 4 of this machine has no cuda device: there are 4; start fewer ranks"):
        starting(monkeypatch, 4, RANK="4", WORLD_SIZE="5", LOCAL_RANK="4")


def test_recipes_leave_the_device_to_start_ranks() -> None:
    for recipe in (ROOT / "recipes").glob("*.py"):
        assert "set_device" not in recipe.read_text()
        assert "    main(" in recipe.read_text()
