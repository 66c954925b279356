"""How far a score moves with the choice of examples: the bootstrap's percentile interval.

Pictures are drawn with replacement, 1,000 times, from a fixed seed, so the same answers give the same interval. A
picture comes with all that was asked about it: the rounds of a dialog or the questions of a picture are answered alike,
and drawn one by one they would make the interval too narrow (cluster bootstrap; Cameron, Gelbach and Miller 2008).
Where the score is a mean over examples the examples' scores are drawn. CIDEr too: the document frequencies stay those
of the full set, as drawing an image twice tells nothing new about how rare a word is. The area under the ROC curve is
no mean, and is computed again from every draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from instructkit.evaluation import metrics
from instructkit.evaluation.metrics import auc
from instructkit.evaluation.responses import Answer

DRAWS = 1000
COVERED = 0.95
_SEED = 2305_06500


def interval(metric: str, answers: Sequence[Answer], draws: int = DRAWS) -> tuple[float, float] | None:
    """Bounds of the middle 95% of the bootstrap's scores, on the scale of the metric's main value.

    Args:
        metric: name in `instructkit.evaluation.metrics`.
        answers: scored ones; those of the same pictures or video are drawn together.
        draws: how many.

    Returns:
        Lower and upper bound; None for a single picture, which tells nothing about others.

    Raises:
        ValueError: the metric is not defined on the answers.
    """
    predictions, references = [each.prediction for each in answers], [each.reference for each in answers]
    picture = _pictures(answers)
    if metric != "roc_auc":
        return _of_mean(np.asarray(metrics.load(metric).scores(predictions, references)), picture, draws)
    if len(set(picture)) < 2:
        return None
    return _middle(_auc_draws(np.asarray(predictions, float), np.asarray(references), picture, draws))


def intervals(metric: str, answers: Sequence[Answer], draws: int = DRAWS) -> dict[str, tuple[float, float] | None]:
    """The same of each measure of a metric that has several; an example may count in one several times."""
    found = metrics.load(metric).measures([each.prediction for each in answers], [each.reference for each in answers])
    picture = _pictures(answers)
    return {
        name: _of_mean(np.concatenate(scores), np.repeat(picture, [len(each) for each in scores]), draws)
        for name, scores in found.items()
    }


def _of_mean(scores: np.ndarray, picture: np.ndarray, draws: int) -> tuple[float, float] | None:
    """Of a mean of scores; those that are nan are left out."""
    valid = ~np.isnan(scores)
    if len(set(picture[valid])) < 2:
        return None
    return _middle(_mean_draws(scores[valid], picture[valid], draws))


def _middle(values: np.ndarray) -> tuple[float, float]:
    edge = (1 - COVERED) / 2
    low, high = np.quantile(values, [edge, 1 - edge])
    return round(100 * float(low), 6), round(100 * float(high), 6)


def _pictures(answers: Sequence[Answer]) -> np.ndarray:
    """For each answer the number of its picture, of its pictures together or of its video; one without has its own."""
    numbers: dict[tuple[str, ...], int] = {}
    keys = [tuple(each.images) or ("", each.example) for each in answers]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def _mean_draws(scores: np.ndarray, picture: np.ndarray, draws: int) -> np.ndarray:
    """Mean over the examples of each draw of pictures."""
    rng = np.random.default_rng(_SEED)
    number = np.unique(picture, return_inverse=True)[1]
    totals, counts = np.bincount(number, scores), np.bincount(number)
    drawn = (rng.integers(0, len(counts), len(counts)) for _ in range(draws))
    return np.array([totals[each].sum() / counts[each].sum() for each in drawn])


def _auc_draws(values: np.ndarray, labels: np.ndarray, picture: np.ndarray, draws: int) -> np.ndarray:
    """AUC of every draw of pictures; a draw of one class alone has none and is drawn again."""
    rng = np.random.default_rng(_SEED)
    order = np.argsort(picture, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(picture[order])) + 1)
    found: list[float] = []
    while len(found) < draws:
        drawn = np.concatenate([members[each] for each in rng.integers(0, len(members), len(members))])
        if 0 < labels[drawn].sum() < len(drawn):
            found.append(math.fsum(auc.scores(values[drawn].tolist(), labels[drawn].tolist())) / len(drawn))
    return np.array(found)
