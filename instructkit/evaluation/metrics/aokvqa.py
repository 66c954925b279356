"""A-OKVQA direct answers. Multiple choice is `top1`.

Source: `evaluation/eval_predictions.py` of allenai/aokvqa.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .base import ScoredMetric, check_answers, check_lengths


def accuracy(prediction: str, answers: Sequence[str]) -> float:
    """min(1, equal answers / 3): no normalisation, no leave-one-out; nan without answers."""
    return min(1.0, list(answers).count(prediction) / 3) if len(answers) else math.nan


def scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Direct-answer accuracy, 0..1, of each example.

    Args:
        predictions: One answer per example.
        references: The ten answers per example; an empty list for a question that is marked
            `difficult_direct_answer`, which the official score leaves out.

    Returns:
        One score per example, nan for an example that is left out.

    Raises:
        ValueError: Lengths differ or a reference is a bare string.
    """
    check_lengths(predictions, references)
    check_answers([answers for answers in references if len(answers)])
    return [accuracy(*example) for example in zip(predictions, references, strict=True)]


class AokvqaDirectAnswerMetric(ScoredMetric):
    """`aokvqa_direct_answer`, 0..100: mean over the examples that have answers."""

    key = "aokvqa_direct_answer"
    scores = staticmethod(scores)
