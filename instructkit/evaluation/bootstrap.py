"""How far a score moves with the choice of examples: the bootstrap's percentile interval.

Examples are drawn with replacement, 1,000 times, from a fixed seed, so the same answers give the same interval. Where
the score is a mean over examples the examples' scores are drawn. CIDEr too: the document frequencies stay those of the
full set, as drawing an image twice tells nothing new about how rare a word is. The area under the ROC curve is no mean,
and is computed anew from every draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from instructkit import metrics
from instructkit.evaluation.responses import Answer
from instructkit.metrics import auc

DRAWS = 1000
COVERED = 0.95
_SEED = 2305_06500


def interval(metric: str, answers: Sequence[Answer], draws: int = DRAWS) -> tuple[float, float] | None:
    """Bounds of the middle 95% of the bootstrap's scores, on the scale of the metric's main value.

    Args:
        metric: name in `instructkit.metrics`.
        answers: scored ones.
        draws: how many.

    Returns:
        Lower and upper bound; None for a single example, which tells nothing about others.

    Raises:
        ValueError: the metric is not defined on the answers.
    """
    predictions, references = [each.prediction for each in answers], [each.reference for each in answers]
    if len(answers) < 2:
        return None
    if metric == "roc_auc":
        values = _auc_draws(np.asarray(predictions, float), np.asarray(references), draws)
    else:
        scores = np.asarray(metrics.load(metric).scores(predictions, references))
        values = _mean_draws(scores[~np.isnan(scores)], draws)
    edge = (1 - COVERED) / 2
    low, high = np.quantile(values, [edge, 1 - edge])
    return round(100 * float(low), 6), round(100 * float(high), 6)


def _mean_draws(scores: np.ndarray, draws: int) -> np.ndarray:
    rng = np.random.default_rng(_SEED)
    return np.array([scores[rng.integers(0, len(scores), len(scores))].mean() for _ in range(draws)])


def _auc_draws(values: np.ndarray, labels: np.ndarray, draws: int) -> np.ndarray:
    """AUC of every draw; a draw of one class alone has none and is drawn again."""
    rng = np.random.default_rng(_SEED)
    found: list[float] = []
    while len(found) < draws:
        drawn = rng.integers(0, len(labels), len(labels))
        if 0 < labels[drawn].sum() < len(labels):
            found.append(math.fsum(auc.scores(values[drawn].tolist(), labels[drawn].tolist())) / len(labels))
    return np.array(found)
