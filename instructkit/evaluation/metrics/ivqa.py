"""iVQA accuracy: an answer is right when two of the five annotators gave it, half right when one did.

Source: `eval_videoqa.py` of antoyang/just-ask, which scores only answers inside its training vocabulary; here any
answer counts. No normalisation.
"""

from __future__ import annotations

from collections.abc import Sequence

from .base import ScoredMetric, check_answers, check_lengths


def accuracy(prediction: str, answers: Sequence[str]) -> float:
    """min(1, equal answers / 2)."""
    return min(1.0, list(answers).count(prediction) / 2)


def scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Accuracy, 0..1, of each example.

    Args:
        predictions: One answer per example.
        references: The five answers per example.

    Raises:
        ValueError: Lengths differ or an example has no answers.
    """
    check_lengths(predictions, references)
    check_answers(references)
    return [accuracy(*example) for example in zip(predictions, references, strict=True)]


class IvqaAccuracyMetric(ScoredMetric):
    """`ivqa_accuracy`, 0..100: mean of min(1, equal answers / 2)."""

    key = "ivqa_accuracy"
    scores = staticmethod(scores)
