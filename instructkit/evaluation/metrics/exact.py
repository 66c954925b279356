"""Exact match of generated short answers (GQA, OCR-VQA, VSR, MSVD-QA).

The official scores of these sets compare strings as they are, but their answers are in lower case and bare while a
language model writes "Yes." So both sides are put in lower case, white space is collapsed, and one final period goes.
Nothing else is touched: no articles, no number words, no other punctuation.
"""

from __future__ import annotations

from collections.abc import Sequence

from .base import ScoredMetric, check_answers, check_lengths


def normalise(text: str) -> str:
    """Lower case, single blanks, no final period."""
    return " ".join(text.lower().split()).removesuffix(".").rstrip()


def scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """1 where the prediction equals one of the accepted answers after `normalise`, else 0.

    Args:
        predictions: One answer per example.
        references: The accepted answers per example; most sets have one.

    Raises:
        ValueError: Lengths differ or an example has no answers.
    """
    check_lengths(predictions, references)
    check_answers(references)
    return [
        float(normalise(prediction) in map(normalise, answers))
        for prediction, answers in zip(predictions, references, strict=True)
    ]


class ExactMatchMetric(ScoredMetric):
    """`exact_match`, 0..100: share of predictions that equal an accepted answer."""

    key = "exact_match"
    scores = staticmethod(scores)
