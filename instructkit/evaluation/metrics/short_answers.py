"""Short answers that are right, half right or wrong: exact match, top-1, iVQA and A-OKVQA's direct answers."""

from __future__ import annotations

from collections.abc import Sequence

from .base import ExampleMetric


def normalise(text: str) -> str:
    """Lower case, single blanks, no final period."""
    return " ".join(text.lower().split()).removesuffix(".").rstrip()


class ExactMatchMetric(ExampleMetric):
    """`exact_match`, 0..100: share of predictions that equal an accepted answer (GQA, OCR-VQA, VSR, MSVD-QA).

    The official scores of these sets compare strings as they are, but their answers are in lower case and bare while a
    language model writes "Yes." So both sides are put in lower case, white space is collapsed, and one final period
    goes. Nothing else is touched: no articles, no number words, no other punctuation.
    """

    key = "exact_match"

    @staticmethod
    def score_one(prediction: str, answers: Sequence[str]) -> float:
        """1 where the prediction equals one of the accepted answers after `normalise`, else 0."""
        return float(normalise(prediction) in map(normalise, answers))


class Top1Metric(ExampleMetric):
    """`top1`, 0..100: share of examples whose first-ranked candidate is right (ScienceQA, IconQA, MSVD-QA by ranking).

    A-OKVQA's multiple choice, too. The choice is compared as a string, without normalisation, like the official scripts
    do (for A-OKVQA `evaluation/eval_predictions.py` of allenai/aokvqa): where a question lists the right option twice,
    both are right.
    """

    key = "top1"

    @staticmethod
    def score_one(prediction: str, answers: Sequence[str]) -> float:
        """1 where the chosen candidate is one of the right ones, else 0."""
        return float(prediction in answers)


class IvqaAccuracyMetric(ExampleMetric):
    """`ivqa_accuracy`, 0..100: an answer is right when two of the five annotators gave it, half right when one did.

    Source: `eval_videoqa.py` of antoyang/just-ask, which scores only answers inside its training vocabulary; here any
    answer counts. No normalisation.
    """

    key = "ivqa_accuracy"

    @staticmethod
    def score_one(prediction: str, answers: Sequence[str]) -> float:
        """min(1, equal answers / 2)."""
        return min(1.0, list(answers).count(prediction) / 2)


class AokvqaDirectAnswerMetric(ExampleMetric):
    """`aokvqa_direct_answer`, 0..100: mean over the examples that have answers.

    Source: `evaluation/eval_predictions.py` of allenai/aokvqa. A question marked `difficult_direct_answer` comes here
    with an empty list: the official score leaves it out.
    """

    key = "aokvqa_direct_answer"
    skips_unanswered = True

    @staticmethod
    def score_one(prediction: str, answers: Sequence[str]) -> float:
        """min(1, equal answers / 3): no normalisation, no leave-one-out."""
        return min(1.0, list(answers).count(prediction) / 3)
