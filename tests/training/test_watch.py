"""Evaluation while a run trains: it changes nothing, keeps the best checkpoint and knows when to stop."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from instructkit.config.settings import EvaluationConfig
from instructkit.data.dataset import load_examples
from instructkit.errors import UserError
from instructkit.evaluation.questions import draw
from instructkit.prompts.protocols import load_protocol
from instructkit.training.best import Best
from tests.matrix import mostly_full
from tests.training.mini import log, losses, repeatable


def evaluations(run):
    return [line for line in log(run) if "best_step" in line]


def checkpoints(run):
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))


def model(run):
    return load_file(run / "model" / "model.safetensors")


@pytest.mark.parametrize(
    "run", mostly_full(["one/watched", "two/watched", "one/watched-zero3", "two/watched-zero3"], "one/watched")
)
def test_a_run_that_is_watched_has_the_losses_of_one_that_is_not(run, request):
    ranks, _, name = run.partition("/")
    folder = request.getfixturevalue(ranks)
    assert losses(folder / name) == losses(folder / name.replace("watched", "hard"))
    found = evaluations(folder / name)
    assert [line["step"] for line in found] == [2, 4]
    assert found[0]["validation_loss"] > found[-1]["validation_loss"]


@pytest.mark.parametrize(
    ("run", "other", "compared"),
    mostly_full(
        [
            ("one/watched", "one/watched-zero3", 2),
            ("two/watched", "two/watched-zero3", 2),
            ("one/worse", "two/worse", 1),  # then rounding errors grow with the learning rate
            ("one/worse", "two/worse-zero3", 1),
        ],
        ("one/worse", "two/worse", 1),
    ),
)
def test_ranks_and_sharding_change_no_loss(run, other, compared, request):
    lines = [
        evaluations(request.getfixturevalue(name.partition("/")[0]) / name.partition("/")[2])[:compared]
        for name in (run, other)
    ]
    for mine, theirs in zip(*lines, strict=True):
        assert mine.keys() == theirs.keys()
        for key in (key for key in mine if key.startswith("validation_loss")):
            assert theirs[key] == pytest.approx(mine[key], abs=1e-4)


def test_scores_and_losses_stand_in_the_log_with_their_means(one):
    for line in evaluations(one / "watched"):
        assert line["watch_mean"] == pytest.approx(
            (line["watch/easy_vqa/train"] + line["watch/coco_caption/train"]) / 2
        )
        low, high = sorted((line["validation_loss/easy_vqa"], line["validation_loss/coco_caption"]))
        assert low < line["validation_loss"] < high
    for benchmark in ("easy_vqa-train", "coco_caption-train"):
        answered = (one / "watched" / "watch" / benchmark / "responses.jsonl").read_text().splitlines()
        assert len(answered) == 7


def test_a_watched_run_that_goes_on_repeats_the_log_bit_for_bit(one):
    assert repeatable(one / "watched-resumed") == repeatable(one / "watched")


@pytest.mark.parametrize(
    "run",
    mostly_full(
        ["one/worse", "one/worse-zero2", "one/worse-zero3", "two/worse", "two/worse-zero3"], "one/worse", "two/worse"
    ),
)
def test_training_stops_without_gain_and_the_model_is_the_best_one(run, request):
    ranks, _, name = run.partition("/")
    folder = request.getfixturevalue(ranks) / name
    found = evaluations(folder)
    assert [(line["step"], line["best_step"]) for line in found] == [(1, 1), (2, 1), (3, 1)]
    values = [line["validation_loss"] for line in found]
    assert values[0] < min(values[1:])
    first = request.getfixturevalue("one") / "first-step"
    saved, expected = model(folder), model(first)
    assert saved.keys() == expected.keys()
    for key in saved:
        torch.testing.assert_close(saved[key], expected[key], atol=2e-4, rtol=0, msg=key)


def test_the_best_checkpoint_outlives_newer_ones_and_a_run_that_stopped_stays_so(one):
    assert checkpoints(one / "worse") == [1, 2, 3]  # keep_checkpoints=2, and the best
    assert repeatable(one / "worse-resumed") == repeatable(one / "worse")
    assert all(torch.equal(model(one / "worse")[key], value) for key, value in model(one / "worse-resumed").items())


def test_drawn_examples_are_the_same_every_time_and_belong_to_the_benchmark(one, words):
    root = Path(next(word for word in words if word.startswith("data.root=")).removeprefix("data.root="))
    examples = load_examples(root / "easy_vqa" / "train")
    protocol = load_protocol("easy_vqa")
    drawn = draw(protocol, examples, 7, seed=0)
    assert drawn == draw(protocol, examples, 7, seed=0)
    assert drawn != draw(protocol, examples, 7, seed=1)
    assert len(set(drawn)) == 7
    assert drawn == sorted(drawn)
    assert draw(protocol, examples, 10**6, seed=0) == list(range(len(examples)))
    few = msgspec.structs.replace(protocol, needs=["context"])
    assert draw(few, examples, 7, seed=0) == []


def test_what_counts_as_better():
    loss = Best(EvaluationConfig(every=1, validation=["a"], patience=2), [])
    assert loss.name == "validation_loss"
    assert [loss.take(step, {"validation_loss": value}) for step, value in enumerate([3.0, 2.0, 2.0, 2.5])] == [
        True,
        True,
        False,
        False,
    ]
    assert (loss.step, loss.exhausted) == (1, True)
    again = Best(EvaluationConfig(every=1, validation=["a"], patience=3), [])
    assert again.restore(loss.state())
    assert (again.step, again.exhausted) == (1, False)
    assert again.take(4, {"validation_loss": 1.9})
    score = Best(EvaluationConfig(every=1, watch=["x", "y"], validation=["a"]), ["x", "y"])
    assert score.name == "watch_mean"
    assert not score.restore(loss.state())
    assert score.take(1, {"watch_mean": 1.0, "validation_loss": 3.0})
    assert not score.take(2, {"validation_loss": 1.0})  # a benchmark without a score: nothing to compare
    assert score.take(3, {"watch_mean": 2.0, "validation_loss": 4.0})
    assert not score.exhausted


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "nothing to evaluate"),
        ({"validation": ["a", "b"], "best": "watch/a"}, "there are validation_loss, validation_loss/a"),
    ],
)
def test_settings_that_say_nothing_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Best(EvaluationConfig(every=1, **settings), [])
