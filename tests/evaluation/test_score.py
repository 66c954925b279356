"""Scores, their groups and errors, and the bootstrap's intervals."""

from __future__ import annotations

import math
import random
from statistics import NormalDist

import msgspec
import pytest

from instructkit import metrics
from instructkit.evaluation.bootstrap import interval
from instructkit.evaluation.responses import Answer
from instructkit.evaluation.score import NotEvaluated, Result, score
from instructkit.protocols import benchmarks, load_protocol


def exact(right: int, wrong: int) -> list[Answer]:
    texts = ["yes"] * right + ["no"] * wrong
    return [
        Answer(example=f"x/test/{index}", prediction=text, reference=["yes"], text=text)
        for index, text in enumerate(texts)
    ]


def test_the_interval_of_a_share_is_the_binomials() -> None:
    low, high = interval("exact_match", exact(300, 700)) or (0.0, 0.0)
    half = 100 * NormalDist().inv_cdf(0.975) * math.sqrt(0.3 * 0.7 / 1000)
    assert low == pytest.approx(30 - half, abs=0.4)
    assert high == pytest.approx(30 + half, abs=0.4)
    assert interval("exact_match", exact(300, 700)) == (low, high)


def test_the_interval_of_an_auc_is_that_of_draws_computed_one_by_one() -> None:
    """Against the plain definition over pairs, drawn by other random numbers."""
    rng = random.Random(0)
    labels = [index % 3 == 0 for index in range(60)]
    values = [rng.gauss(0.8 if label else 0.0, 1.0) for label in labels]
    answers = [
        Answer(example=f"x/test/{index}", prediction=value, reference=int(label))
        for index, (value, label) in enumerate(zip(values, labels, strict=True))
    ]

    def auc(drawn: list[int]) -> float:
        pairs = [(values[i], values[j]) for i in drawn for j in drawn if labels[i] and not labels[j]]
        return 100 * sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)

    draws = sorted(auc([rng.randrange(60) for _ in range(60)]) for _ in range(600))
    low, high = interval("roc_auc", answers) or (0.0, 0.0)
    assert low == pytest.approx(draws[15], abs=3.0)
    assert high == pytest.approx(draws[-15], abs=3.0)
    assert low < auc(list(range(60))) < high


def test_one_example_has_no_interval() -> None:
    assert interval("exact_match", exact(1, 0)) is None


CASES = {
    "cider": [("a red shape", ["a red circle", "one red shape"]), ("blue", ["a blue square"]), ("a dog", ["a cat"])],
    "visdial": [
        ([0.1, 0.7, 0.2], {"gold_index": 0, "relevance": []}),
        ([3.0, 2.0], {"gold_index": 0, "relevance": []}),
    ],
}
TEXTS = [("yes", ["yes", "yes", "no"]), ("2", ["two", "3", "2"]), ("a cat", ["cat", "dog", "cat"])]


@pytest.mark.parametrize("name", [name for name in metrics.NAMES if name != "roc_auc"])
def test_every_metric_but_the_auc_is_a_mean_so_that_drawing_scores_is_right(name: str) -> None:
    metric = metrics.load(name)
    predictions, references = map(list, zip(*CASES.get(name, TEXTS), strict=True))
    mean = sum(metric.scores(predictions, references)) / len(predictions)
    assert metric.aggregate(predictions, references)[metric.key] == pytest.approx(100 * mean)


def test_every_metric_of_a_protocol_is_tested_here() -> None:
    assert {load_protocol(name).metric for name in benchmarks()} <= set(metrics.NAMES)


def test_errors_are_not_scored_and_are_named() -> None:
    answers = [*exact(3, 1), Answer(example="x/test/broken", error="no picture")]
    result = score(load_protocol("gqa"), answers, 9)
    assert isinstance(result, Result)
    assert (result.value, result.n, result.available) == (75.0, 4, 9)
    assert result.errors == {"x/test/broken": "no picture"}


def test_nothing_but_errors_is_no_score() -> None:
    missing = score(load_protocol("gqa"), [Answer(example="x/test/1", error="no picture")], 1)
    assert isinstance(missing, NotEvaluated)
    assert missing.reason == "all 1 examples failed, the first: no picture"
    assert missing.errors == {"x/test/1": "no picture"}


def test_groups_are_scored_by_themselves() -> None:
    protocol = msgspec.structs.replace(load_protocol("gqa"), group_by="domain")
    answers = exact(3, 1)
    for answer, group in zip(answers, ["near", "near", "far", "near"], strict=True):
        answer.group = group
    result = score(protocol, answers, 4)
    assert isinstance(result, Result)
    assert result.groups == {"far": (100.0, 1), "near": (pytest.approx(200 / 3), 3)}
