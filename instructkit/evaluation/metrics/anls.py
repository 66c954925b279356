"""Average normalised Levenshtein similarity (DocVQA, ST-VQA, InfographicVQA).

Source: the evaluation script of the Robust Reading Competition, threshold 0.5 (a similarity of exactly 0.5 stays). Its
oddity is kept: the distance is taken between cleaned strings but divided by the length of the raw ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from .base import ExampleMetric

_THRESHOLD = 0.5


def levenshtein(first: str, second: str) -> int:
    """Least number of inserted, deleted and replaced characters that turns one string into the other."""
    if first == second:
        return 0
    previous = list(range(len(second) + 1))
    for row, left in enumerate(first, start=1):
        current = [row]
        for column, right in enumerate(second):
            change = previous[column] + (left != right)
            current.append(min(change, previous[column + 1] + 1, current[column] + 1))
        previous = current
    return previous[-1]


def _clean(text: str) -> str:
    return " ".join(text.lower().split())


def similarity(prediction: str, answer: str) -> float:
    """1 - distance / length of the longer string, before the threshold; two empty strings are equal."""
    # Upper case, because it can change the length ("ß") and the script divides by that one.
    length = max(len(prediction.upper()), len(answer.upper()))
    return 1.0 - levenshtein(_clean(prediction), _clean(answer)) / length if length else 1.0


class AnlsMetric(ExampleMetric):
    """`anls`, 0..100: mean normalised Levenshtein similarity."""

    key = "anls"

    @staticmethod
    def score_one(prediction: str, answers: Sequence[str]) -> float:
        """Similarity, 0..1, to the nearest answer; 0 where it is below 0.5."""
        best = max(similarity(prediction, answer) for answer in answers)
        return best if best >= _THRESHOLD else 0.0
