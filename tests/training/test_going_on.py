"""Runs that go on where another stopped: on more ranks or fewer, with batches cut otherwise, for more steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.matrix import mostly_full
from tests.training.mini import Runs, log, losses, repeatable, write_model, write_releases

SHARDED = [f"zero{stage}" for stage in (1, 2, 3)]
MUON = ["optimizer=muon", "learning_rate=0.01"]
CONSTANT = ["learning_rate=0.001", "min_learning_rate=0.001"]
WATCHED = ["every=1", "evaluation.validation=[easy_vqa]", "watch_limit=7", "warmup_steps=3", "learning_rate=3"]


def own_file(path: Path, ranks: int, steps: int) -> str:
    """A DeepSpeed file with numbers in it that follow from the ranks and the steps."""
    content = {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 8 // ranks,
        "scheduler": {"type": "WarmupCosineLR", "params": {"total_num_steps": steps}},
        "zero_optimization": {"stage": 0},
    }
    path.write_text(json.dumps(content))
    return f"deepspeed={path}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs on one rank, what goes on from them on two, and what goes on from those on one."""
    place = tmp_path_factory.mktemp("going-on")
    words = [
        *write_releases(place),
        f"model.name={write_model(place / 'model')}",
        *("batch_size=8", "group_size=2", "max_steps=4", "warmup_steps=2", "log_every=1", "checkpoint_every=2"),
    ]
    sharded = {name: [*words, f"zero_stage={name[4]}"] for name in SHARDED}
    watched = [*words, *WATCHED, "max_steps=3", "keep_checkpoints=1"]
    one = {
        "fp32": words,
        "bf16": [*words, "precision=bf16"],
        "zero1-bf16": [*words, "zero_stage=1", "precision=bf16"],
        "muon": [*words, *MUON],
        "own": [*words, own_file(place / "one.json", 1, 4)],
        "constant": [*words, *CONSTANT],
        "constant-8": [*words, *CONSTANT, "max_steps=8"],
        "constant-longer": [*words, *CONSTANT, "after=constant:4", "max_steps=8"],
        "cosine-longer": [*words, "after=fp32:4", "max_steps=6"],
        "shorter": [*words, "after=fp32:4", "max_steps=3"],
        "watched": watched,
        "watched-longer": [*watched, "after=watched:3", "max_steps=4"],
        "step-1": [*watched, "every=0", "max_steps=1", "evaluation.validation=[]"],
        "impatient": [*watched, "patience=1"],
        "impatient-longer": [*watched, "patience=1", "after=impatient:3", "max_steps=4"],
        **sharded,
    }
    two = {
        "fp32-on-2": [*words, "after=fp32:2"],
        "fp32-split-on-2": [*words, "after=fp32:2", "accumulation=2"],
        "bf16-on-2": [*words, "precision=bf16", "after=bf16:2"],
        "muon-on-2": [*words, *MUON, "after=muon:2"],
        "own-on-2": [*words, own_file(place / "two.json", 2, 6), "after=own:4", "max_steps=6"],
        "watched-on-2": [*watched, "after=watched:3", "max_steps=4"],
        "constant-on-2": [*words, *CONSTANT, "after=constant:4", "max_steps=8"],
        "two": words,
        "two-bf16": [*words, "precision=bf16"],
        "two-zero2": [*words, "zero_stage=2"],
        "zero1-bf16-on-2": [*words, "zero_stage=1", "precision=bf16", "after=zero1-bf16:2"],
        **{f"{name}-on-2": [*settings, f"after={name}:2"] for name, settings in sharded.items()},
    }
    again = {
        "two-on-1": [*words, "after=two:2"],
        "two-split-on-1": [*words, "after=two:2", "accumulation=2"],
        "two-bf16-on-1": [*words, "precision=bf16", "after=two-bf16:2"],
        "two-zero2-on-1": [*words, "zero_stage=2", "after=two-zero2:2"],
        "back": [*words, "after=fp32-on-2:4", "max_steps=6"],
    }
    plans = ((1, one), (2, two), (1, again))
    return Runs(place, {name: (ranks, words) for ranks, plan in plans for name, words in plan.items()})


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


@pytest.mark.parametrize(
    ("resumed", "whole"),
    mostly_full(
        [
            ("fp32-on-2", "fp32"),
            ("fp32-split-on-2", "fp32"),
            ("muon-on-2", "muon"),
            ("constant-on-2", "constant-8"),
            ("two-on-1", "fp32"),
            ("two-split-on-1", "fp32"),
        ],
        ("fp32-on-2", "fp32"),
        ("two-on-1", "fp32"),
    ),
)
def test_a_run_goes_on_with_the_same_losses_on_another_number_of_ranks(folder: Runs, resumed: str, whole: str) -> None:
    steps = [line["step"] for line in log(folder / whole)]
    assert [line["step"] for line in log(folder / resumed)] == steps
    assert losses(folder / resumed) == pytest.approx(losses(folder / whole), abs=1e-5)
    for name, weight in weights(folder / whole).items():
        torch.testing.assert_close(weights(folder / resumed)[name], weight, atol=2e-4, rtol=0, msg=name)


@pytest.mark.parametrize("resumed", mostly_full(["bf16-on-2", "two-bf16-on-1"], "bf16-on-2"))
def test_a_bf16_run_goes_on_on_another_number_of_ranks(folder: Runs, resumed: str) -> None:
    assert losses(folder / resumed) == pytest.approx(losses(folder / "bf16"), abs=0.01)


DIFFERS = {
    "fp32-on-2": "ranks was 1 and is 2: losses differ by rounding and, where the model has dropout, by its",
    "fp32-split-on-2": "accumulation was 1 and is 2: losses differ by rounding",
    "two-on-1": "ranks was 2 and is 1",
    "constant-longer": "max_steps was 4 and is 8: the learning rate follows the longer run's schedule from here on",
}


@pytest.mark.parametrize("name", mostly_full(DIFFERS, "fp32-on-2", "two-on-1", "constant-longer"))
def test_the_log_says_what_differs(folder: Runs, name: str) -> None:
    _ = folder / name
    assert f"resume    {DIFFERS[name]}" in folder.said[name]
    assert ("resume    ranks was" in folder.said[name]) == ("-on-" in name)


@pytest.mark.parametrize(
    "name", mostly_full([*(f"{name}-on-2" for name in SHARDED), "zero1-bf16-on-2", "two-zero2-on-1"], "zero2-on-2")
)
def test_sharded_state_is_refused_on_another_number_of_ranks_in_one_line(folder: Runs, name: str) -> None:
    before, now, stage = ("2 ranks", 1, "2") if name.startswith("two") else ("1 rank", 2, name[4])
    files = sorted((folder / name).glob("error-*.txt"))
    assert len(files) == now
    for file in files:
        message = file.read_text()
        assert f"step-00000002: written by {before} under ZeRO {stage}, which shards" in message
        assert f"and this run has {now}; go on with {before[0]} (deepspeed --num_accelerators {before[0]})" in message
        assert "\n" not in message
    assert not (folder / name / "model").exists()


def test_a_finished_run_is_lengthened_as_if_it_had_never_ended(folder: Runs) -> None:
    assert [line["step"] for line in log(folder / "constant-longer")] == list(range(1, 9))
    assert repeatable(folder / "constant-longer") == repeatable(folder / "constant-8")
    longer, whole = weights(folder / "constant-longer"), weights(folder / "constant-8")
    assert all(torch.equal(longer[name], whole[name]) for name in whole)


def test_a_longer_run_follows_the_longer_schedule(folder: Runs) -> None:
    lines = log(folder / "cosine-longer")
    assert [line["step"] for line in lines] == list(range(1, 7))
    assert [line["loss"] for line in lines[:4]] == losses(folder / "fp32")
    # Cosine from 1e-3 in step 3 of 6: a half and a quarter of the way from the peak are behind it.
    assert lines[4]["learning_rate"] == pytest.approx(5e-4)
    assert lines[5]["learning_rate"] == pytest.approx(5e-4 * (1 - 0.5**0.5))
    assert [line["step"] for line in log(folder / "back")] == list(range(1, 7))
    assert losses(folder / "back") == pytest.approx(losses(folder / "cosine-longer"), abs=1e-5)


def test_a_shorter_run_is_refused(folder: Runs) -> None:
    message = (folder / "shorter" / "error-0.txt").read_text()
    assert "settings.training.max_steps = 4, now 3; go on with the same settings (max_steps may only grow)" in message


@pytest.mark.full
def test_a_deepspeed_file_may_change_with_the_ranks_and_the_steps(folder: Runs) -> None:
    assert not list((folder / "own-on-2").glob("error-*.txt"))
    assert losses(folder / "own-on-2") == pytest.approx(losses(folder / "cosine-longer"), abs=1e-5)


@pytest.mark.parametrize(
    "name", mostly_full(["watched-longer", "watched-on-2", "impatient-longer"], "watched-longer", "impatient-longer")
)
def test_the_best_of_the_shorter_run_stays_the_best(folder: Runs, name: str) -> None:
    steps = [line["best_step"] for line in log(folder / name) if "best_step" in line]
    assert set(steps) == {1}
    longer, best = weights(folder / name), weights(folder / "step-1")
    assert all(torch.equal(longer[key], best[key]) for key in best)
    assert len(steps) == (2 if name == "impatient-longer" else 4)
    said = "evaluate  no step is done: no gain in the last 1 evaluations" in folder.said[name]
    assert said == (name == "impatient-longer")
