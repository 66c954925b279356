"""Whether ranked scores mean what they say: confidence against accuracy.

Confidence is the softmax of the best candidate's log-likelihood over all candidates of its question. The expected
calibration error (ECE, Guo et al. 2017, arXiv:1706.04599) is the mean distance between confidence and accuracy over
ten bins of equal width, each weighed by its answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from instructkit.evaluation.responses import Answer

BINS = 10


def is_right(metric: str, answer: Answer, score: float) -> bool:
    """Whether the best candidate is the right one.

    Args:
        metric: of the benchmark.
        answer: a ranked one.
        score: the metric's for this answer, 0 to 1.
    """
    if metric == "roc_auc":
        return bool((answer.prediction > 0) == (answer.reference == 1))
    return score >= 1.0


def calibration(confidences: Sequence[float], right: Sequence[bool]) -> dict[str, Any] | None:
    """The bins of a reliability diagram, and the expected calibration error.

    Args:
        confidences: 0 to 1, one an answer.
        right: whether the answer is right.

    Returns:
        `ece`, 0 to 100, and `bins` from low to high with `confidence` and `accuracy` (0 to 100, means of the bin, None
        where it is empty) and `n`; None without answers.
    """
    if not confidences:
        return None
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for confidence, correct in zip(confidences, right, strict=True):
        bins[min(BINS - 1, int(confidence * BINS))].append((confidence, correct))
    rows = [_bin(each) for each in bins]
    total = sum(abs(row["confidence"] - row["accuracy"]) * row["n"] for row in rows if row["n"])
    return {"ece": total / len(confidences), "bins": rows}


def _bin(answers: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    if not answers:
        return {"confidence": None, "accuracy": None, "n": 0}
    return {
        "confidence": 100 * sum(confidence for confidence, _ in answers) / len(answers),
        "accuracy": 100 * sum(correct for _, correct in answers) / len(answers),
        "n": len(answers),
    }
