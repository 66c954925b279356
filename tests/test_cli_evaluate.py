"""`instructkit evaluate` and `instructkit report` as a user starts them."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import instructkit as ik
from instructkit import cli
from instructkit.cli import app
from instructkit.config.read import evaluation_settings
from instructkit.errors import UserError
from tests.evaluation.world import World

runner = CliRunner()


def test_command_recipe_and_program_have_the_same_defaults() -> None:
    """What one began the other goes on with."""
    recipe = evaluation_settings({"model": "m", "benchmarks": "held-out", "output": "o"}).evaluation
    command, program = (inspect.signature(each).parameters for each in (cli.evaluate, ik.evaluate))
    for name in ("limit", "eval_batch_size", "spread"):
        assert command[name].default == getattr(recipe, name), name
    for name in ("limit", "batch_size", "spread"):
        assert program[name].default == getattr(recipe, name.replace("batch", "eval_batch")), name
    assert command["dtype"].default == (recipe.dtype or "float32")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    world = World(tmp_path_factory.mktemp("world"))
    world.benchmark("vqav2")
    return world


def command(world: World, out: Path, benchmarks: str, *more: str) -> list[str]:
    model = str(world.model())
    return [
        "evaluate",
        "--model",
        model,
        "--data",
        str(world.data),
        "--benchmarks",
        benchmarks,
        "--out",
        str(out),
        *more,
    ]


def test_evaluate_and_report(world: World, tmp_path: Path) -> None:
    for name, limit in (("one", "2"), ("two", "3")):
        done = runner.invoke(app, command(world, tmp_path / name, "vqav2", "--limit", limit))
        assert done.exit_code == 0, done.output
        assert f"reached   VQAv2: vqa_accuracy 0.00 on {limit}" in done.output
    report = json.loads((tmp_path / "two" / "report" / "report.json").read_text())
    assert report["benchmarks"]["vqav2"]["n"] == 3
    done = runner.invoke(app, ["report", str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "| VQAv2 |" in (tmp_path / "comparison.md").read_text()


def test_a_group_is_done_with_what_there_is(world: World, tmp_path: Path) -> None:
    done = runner.invoke(app, command(world, tmp_path, "held-in"))
    assert done.exit_code == 0, done.output
    assert "no score  TextCaps: textcaps/val is not converted" in done.output


def test_a_name_without_a_score_is_exit_code_1(world: World, tmp_path: Path) -> None:
    done = runner.invoke(app, command(world, tmp_path, "vqav2,gqa"))
    assert done.exit_code == 1, done.output
    assert (tmp_path / "report" / "report.html").is_file()


def test_nothing_at_all_is_exit_code_1(world: World, tmp_path: Path) -> None:
    done = runner.invoke(app, command(world, tmp_path, "held-out"))
    assert done.exit_code == 1, done.output
    assert "No benchmark has a score." in (tmp_path / "report" / "report.md").read_text()


@pytest.mark.parametrize(
    ("benchmarks", "more", "message"),
    [
        ("vqa_v2", [], "did you mean vqav2"),
        ("vqav2", ["--dtype", "int4"], "dtype"),
        ("vqav2", ["--data", "nowhere"], "nowhere: no such folder"),
        ("vqav2", ["--model", "nowhere/at/all"], "nowhere/at/all: no such folder"),
    ],
)
def test_mistakes_are_told_in_one_line(
    world: World, tmp_path: Path, benchmarks: str, more: list[str], message: str
) -> None:
    done = runner.invoke(app, command(world, tmp_path, benchmarks, *more))
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception)
    assert "\n" not in str(done.exception)


def test_other_responses_are_not_mixed_in(world: World, tmp_path: Path) -> None:
    assert runner.invoke(app, command(world, tmp_path, "vqav2")).exit_code == 0
    done = runner.invoke(app, command(world, tmp_path, "vqav2", "--limit", "1"))
    assert "limit was None, is 1" in str(done.exception)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(world: World, tmp_path: Path, dtype: str) -> None:
    world.benchmark("iconqa")
    done = runner.invoke(app, command(world, tmp_path, "vqav2,iconqa", "--dtype", dtype))
    assert done.exit_code == 0, done.output


HOLD = """
import sys
from pathlib import Path
from instructkit.runs.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_evaluations_in_one_folder_are_refused(world: World, tmp_path: Path) -> None:
    words = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        done = runner.invoke(app, command(world, tmp_path / "out", "vqav2"))
        assert str(done.exception).startswith(f"{tmp_path / 'out'}: another run writes here (process {other.pid} on ")
        with pytest.raises(UserError, match="another run writes here"):
            ik.evaluate(world.model(), "vqav2", data=world.data, out=tmp_path / "out")
        other.communicate("")
