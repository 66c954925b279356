"""Area under the ROC curve (HatefulMemes).

The prediction is any number that is larger for the positive class; ties count one half. The difference of the two
verbalisers' log-probabilities ranks like their softmax but does not saturate into ties.
"""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import numpy as np

from .base import ScoredMetric, check_finite, check_lengths


def scores(predictions: Sequence[float], references: Sequence[int]) -> list[float]:
    """Share, 0..1, of the other class that an example stands on the right side of; a tie counts one half.

    The mean over all examples is the AUC, as are the means over either class. Each score depends on the other
    examples, though: a bootstrap must draw examples and compute the AUC again, not draw these scores.

    Args:
        predictions: One number per example, larger for class 1.
        references: One label per example, 0 or 1.

    Raises:
        ValueError: Lengths differ, a score is nan, a label is not 0 or 1, or only one class is there.
    """
    check_lengths(predictions, references)
    for index, value in enumerate(predictions):
        check_finite([value], index)
    classes = set(references)
    if classes - {0, 1}:
        raise ValueError(f"labels must be 0 or 1, but some are {sorted(classes - {0, 1})}")
    if len(classes) < 2:
        found = f"all {len(references)} labels are {classes.pop()}" if classes else "there are no labels"
        raise ValueError(f"ROC AUC needs examples of both classes, but {found}: score a larger or mixed subset")
    values, labels = np.asarray(predictions, dtype=np.float64), np.asarray(references)
    result = np.empty(len(values))
    for label, sign in ((1, 1.0), (0, -1.0)):
        others = np.sort(sign * values[labels != label])
        own = sign * values[labels == label]
        lower, upper = np.searchsorted(others, own, "left"), np.searchsorted(others, own, "right")
        result[labels == label] = (lower + upper) / (2 * len(others))
    return [float(score) for score in result]


class RocAucMetric(ScoredMetric):
    """`roc_auc`, 0..100: area under the ROC curve, the mean of `scores`."""

    key = "roc_auc"
    unit = "0..1, share of the other class ranked correctly"
    example_features = datasets.Features(
        {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
    )
    scores = staticmethod(scores)
