"""Scores, their groups and errors, and the bootstrap's intervals."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from statistics import NormalDist

import msgspec
import pytest

from instructkit.evaluation import metrics
from instructkit.evaluation.bootstrap import interval
from instructkit.evaluation.responses import Answer
from instructkit.evaluation.score import NotEvaluated, Result, score
from instructkit.prompts.protocols import benchmarks, load_protocol


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


def test_one_picture_has_no_interval() -> None:
    assert interval("exact_match", exact(1, 0)) is None
    together = [msgspec.structs.replace(answer, images=["a.jpg"]) for answer in exact(5, 5)]
    assert interval("exact_match", together) is None


def dialogs(count: int, rounds: int, seed: int = 0) -> list[Answer]:
    """Rounds of one dialog are nearly all right or nearly all wrong; dialogs differ in length."""
    rng = random.Random(seed)
    found = []
    for dialog in range(count):
        share = rng.choice([0.1, 0.9])
        for number in range(rng.randint(1, rounds)):
            text = "yes" if rng.random() < share else "no"
            name = f"x/test/{dialog}/{number}"
            found.append(Answer(example=name, images=[f"{dialog}.jpg"], prediction=text, reference=["yes"], text=text))
    return found


def slow_draws(answers: list[Answer], value: Callable[[list[Answer]], float | None], draws: int) -> list[float]:
    """Scores of draws of pictures, each with all its answers, one by one and by other random numbers."""
    rng = random.Random(1)
    pictures = sorted({tuple(answer.images) for answer in answers})
    found: list[float] = []
    while len(found) < draws:
        drawn = [rng.choice(pictures) for _ in pictures]
        scored = value([answer for picture in drawn for answer in answers if tuple(answer.images) == picture])
        if scored is not None:
            found.append(scored)
    return sorted(found)


def share(answers: list[Answer]) -> float:
    return 100 * sum(answer.prediction == "yes" for answer in answers) / len(answers)


def pairs(answers: list[Answer]) -> float | None:
    ones = [answer.prediction for answer in answers if answer.reference]
    noughts = [answer.prediction for answer in answers if not answer.reference]
    if not ones or not noughts:
        return None
    return 100 * sum((a > b) + 0.5 * (a == b) for a in ones for b in noughts) / len(ones) / len(noughts)


def test_rounds_of_a_dialog_are_drawn_together() -> None:
    answers = dialogs(60, 10)
    random.Random(3).shuffle(answers)
    draws = slow_draws(answers, share, 1000)
    low, high = interval("exact_match", answers) or (0.0, 0.0)
    assert low == pytest.approx(draws[25], abs=1.5)
    assert high == pytest.approx(draws[-25], abs=1.5)
    alone = [msgspec.structs.replace(answer, images=[]) for answer in answers]
    narrow = interval("exact_match", alone) or (0.0, 0.0)
    assert high - low > 1.5 * (narrow[1] - narrow[0])


def test_the_auc_too_is_drawn_by_pictures() -> None:
    rng = random.Random(5)
    answers = []
    for number in range(120):
        label = rng.randrange(2)
        picture = number % 30
        value = rng.gauss(0.8 * label + (picture % 3) - 1, 0.5)
        images = [f"{picture}.png", f"{picture}b.png"]
        answers.append(Answer(example=f"x/test/{number}", images=images, prediction=value, reference=label))
    draws = slow_draws(answers, pairs, 600)
    low, high = interval("roc_auc", answers) or (0.0, 0.0)
    assert low == pytest.approx(draws[15], abs=3.0)
    assert high == pytest.approx(draws[-15], abs=3.0)


def captions(domains: dict[str, int]) -> list[Answer]:
    names = [(domain, number) for domain, count in domains.items() for number in range(count)]
    return [
        Answer(
            example=f"nocaps/val/{domain}{number}",
            images=[f"{domain}{number}.jpg"],
            prediction=f"a {domain} thing of kind {number}",
            reference=[f"a {domain} thing of kind {number}", "something else"],
            group=domain,
        )
        for domain, number in names
    ]


def test_cider_of_one_image_is_no_score_and_a_domain_of_one_image_has_no_value() -> None:
    protocol = load_protocol("nocaps")
    missing = score(protocol, captions({"near": 1}), 9)
    assert isinstance(missing, NotEvaluated)
    assert "no cider can be computed: CIDEr needs images with different references, but there is one" in missing.reason
    result = score(protocol, captions({"near": 1, "out": 3}), 9)
    assert isinstance(result, Result)
    assert result.groups["near"] == (None, 1)
    value, count = result.groups["out"]
    assert value is not None
    assert value > 100
    assert count == 3


CASES = {
    "cider": [("a red shape", ["a red circle", "one red shape"]), ("blue", ["a blue square"]), ("a dog", ["a cat"])],
    "visdial": [
        ([0.1, 0.7, 0.2], {"gold_index": 0, "relevance": []}),
        ([3.0, 2.0], {"gold_index": 0, "relevance": []}),
    ],
    "retrieval": [({"text": 1, "images": [2, 1]}, ["a", "b"]), ({"text": 0, "images": [1]}, ["c"])],
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
