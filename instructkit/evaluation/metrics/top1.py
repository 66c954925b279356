"""Top-1 accuracy of a choice among candidates (ScienceQA, IconQA, A-OKVQA multiple choice, MSVD-QA by ranking).

The choice is compared as a string, without normalisation, like the official scripts do (for A-OKVQA
`evaluation/eval_predictions.py` of allenai/aokvqa): where a question lists the right option twice, both are right.
"""

from __future__ import annotations

from collections.abc import Sequence

from .base import ScoredMetric, check_answers, check_lengths


def scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """1 where the chosen candidate is one of the right ones, else 0.

    Args:
        predictions: The chosen candidate per example.
        references: The right candidates per example; most sets have one.

    Raises:
        ValueError: Lengths differ or an example has no right candidate.
    """
    check_lengths(predictions, references)
    check_answers(references)
    return [float(prediction in answers) for prediction, answers in zip(predictions, references, strict=True)]


class Top1Metric(ScoredMetric):
    """`top1`, 0..100: share of examples whose first-ranked candidate is right."""

    key = "top1"
    scores = staticmethod(scores)
