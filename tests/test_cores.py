"""What a run settles about CPU cores before torch is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from instructkit.runs import cores
from tests.training.mini import environment, launch

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LOCAL_SIZE", "LOCAL_WORLD_SIZE")
RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that the test's own changes are undone
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize(
    ("busy", "user", "policy"),
    [
        (0.1, {}, None),
        (1.0, {}, "PASSIVE"),
        (1.0, {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        (1.0, {"GOMP_SPINCOUNT": "5"}, None),
        (1.0, {"LOCAL_WORLD_SIZE": "2"}, None),  # the other rank, which loads its libraries
        (2.0, {"LOCAL_SIZE": "2"}, "PASSIVE"),
    ],
)
def test_threads_sleep_beside_others_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, busy: float, user: dict[str, str], policy: str | None
) -> None:
    monkeypatch.setattr(cores, "busy_cores", lambda: busy)
    for name, value in user.items():
        monkeypatch.setenv(name, value)
    cores.share_cores()
    assert os.environ.get("OMP_WAIT_POLICY") == policy
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == cores.PRIMITIVES


@pytest.mark.usefixtures("clean")
def test_the_user_s_bound_of_onednn_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "300")
    cores.bound_primitives()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "300"


def test_busy_cores_are_counted_from_the_kernel_s_ticks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    # user nice system idle iowait irq softirq steal guest guest_nice
    stat.write_text(
        "cpu 9 9 9 9\ncpu0 100 0 0 500 0 0 0 0 0 0\ncpu1 50 0 0 900 10 0 0 0 0 0\ncpu7 0 0 0 0 0 0 0 0 0 0\n"
    )
    later = "cpu0 110 0 5 500 0 0 0 5 10 0\ncpu1 55 0 0 910 15 0 0 0 0 0\ncpu7 90 0 0 0 0 0 0 0 0 0\n"
    monkeypatch.setattr(cores, "_STAT", stat)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    monkeypatch.setattr("time.sleep", lambda seconds: stat.write_text(later))
    assert cores.busy_cores() == pytest.approx(1 + 0.25)


SETTLED = """
import os, runpy, sys
from instructkit.runs import cores

class Torch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            sys.exit(f"torch: {os.environ['OMP_WAIT_POLICY']} {os.environ['ONEDNN_PRIMITIVE_CACHE_CAPACITY']}")

sys.meta_path.insert(0, Torch())
cores.busy_cores = lambda: 2.0
runpy.run_path(sys.argv[1], run_name="recipe")
"""
"""Runs a recipe until it loads torch, and says then what is settled."""


@pytest.mark.parametrize("recipe", ["instruct", "evaluate", "pretrain_qformer"])
def test_a_recipe_s_process_decides_before_torch_is_loaded(recipe: str) -> None:
    names = {name: value for name, value in environment().items() if name not in NAMES}
    words = [sys.executable, "-c", SETTLED, str(RECIPES / f"{recipe}.py")]
    done = subprocess.run(words, env=names, capture_output=True, text=True)
    assert done.stderr == f"torch: PASSIVE {cores.PRIMITIVES}\n"


def test_ranks_that_are_started_by_other_scripts_have_a_bounded_cache_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os\nfrom instructkit.runs.ranks import start_ranks\nstart_ranks()\n"
        "print(os.environ['ONEDNN_PRIMITIVE_CACHE_CAPACITY'])"
    )
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    assert launch(1, script, []).split()[-1] == cores.PRIMITIVES
