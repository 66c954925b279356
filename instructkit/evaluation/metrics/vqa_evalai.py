"""VQA accuracy as the EvalAI server of TextVQA computes it.

Source: `VQAEvalAIAccuracy` and `EvalAIAnswerProcessor` of facebookresearch/mmf. It differs from the official script in
that commas and question marks go first, a possessive becomes a word of its own, and unanimous answers are normalised
as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from .base import ScoredMetric, check_answers, check_lengths
from .vqa import clean, leave_one_out, strip_articles, strip_punctuation


@lru_cache(maxsize=1 << 16)
def normalise(text: str) -> str:
    """What the EvalAI variant compares."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return strip_articles(strip_punctuation(clean(text.strip()), digit=r"\d"))


def accuracy(prediction: str, answers: Sequence[str]) -> float:
    """EvalAI accuracy, 0..1, of one prediction against the annotators' answers."""
    matches = [normalise(answer) for answer in answers].count(normalise(prediction))
    return leave_one_out(matches, len(answers))


def scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """EvalAI VQA accuracy, 0..1, of each example.

    Args:
        predictions: One answer per example.
        references: The annotators' answers per example.

    Raises:
        ValueError: Lengths differ or an example has no answers.
    """
    check_lengths(predictions, references)
    check_answers(references)
    return [accuracy(*example) for example in zip(predictions, references, strict=True)]


class VqaAccuracyEvalAIMetric(ScoredMetric):
    """`vqa_accuracy_evalai`, 0..100: mean VQA accuracy after the normalisation of the EvalAI server (TextVQA)."""

    key = "vqa_accuracy_evalai"
    scores = staticmethod(scores)
