"""VisDial: ranks of the right answer among the candidates, and NDCG over dense relevances.

Source: `visdialch/metrics.py` of batra-mlp-lab/visdial-challenge-starter-pytorch. It leaves ties to an unstable sort;
here a tie always counts against the model, so that equal scores for all candidates win nothing: the right answer ranks
behind all that share its score, and of candidates with one score the less relevant comes first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypedDict

import datasets

from .base import ScoredMetric, check_finite, check_lengths, mean


class Round(TypedDict):
    """What a dialog round is scored against.

    Attributes:
        gold_index: Position of the right answer among the candidates.
        relevance: One number, 0..1, per candidate, or an empty list for a round without dense annotation.
    """

    gold_index: int
    relevance: list[float]


def rank(candidate_scores: Sequence[float], gold_index: int) -> int:
    """Rank of the right answer, 1 is best: how many candidates score at least as high."""
    gold = candidate_scores[gold_index]
    return sum(score >= gold for score in candidate_scores)


def ndcg(candidate_scores: Sequence[float], relevance: Sequence[float]) -> float:
    """Normalised discounted cumulative gain, 0..1, of the first K candidates, K of them being relevant at all.

    Returns:
        nan if no candidate is relevant.
    """
    depth = sum(value != 0 for value in relevance)
    if depth == 0:
        return math.nan
    order = sorted(range(len(relevance)), key=lambda index: (-candidate_scores[index], relevance[index]))
    found = _gain([relevance[index] for index in order[:depth]])
    return found / _gain(sorted(relevance, reverse=True)[:depth])


def _gain(relevance: Sequence[float]) -> float:
    return math.fsum(value / math.log2(place) for place, value in enumerate(relevance, start=2))


def _check(predictions: Sequence[Sequence[float]], references: Sequence[Round]) -> None:
    check_lengths(predictions, references)
    for index, (candidates, reference) in enumerate(zip(predictions, references, strict=True)):
        check_finite(candidates, index)
        if not 0 <= reference["gold_index"] < len(candidates):
            raise ValueError(
                f"reference {index} has gold_index {reference['gold_index']}, but its prediction scores"
                f" {len(candidates)} candidates"
            )
        if len(reference["relevance"]) not in (0, len(candidates)):
            raise ValueError(
                f"reference {index} has {len(reference['relevance'])} relevances for {len(candidates)}"
                f" candidates: give one for each, or an empty list"
            )


def ranks(predictions: Sequence[Sequence[float]], references: Sequence[Round]) -> list[int]:
    """Rank of the right answer per round.

    Raises:
        ValueError: Lengths differ, a score is nan or `gold_index` is out of range.
    """
    _check(predictions, references)
    return [rank(row, reference["gold_index"]) for row, reference in zip(predictions, references, strict=True)]


def scores(predictions: Sequence[Sequence[float]], references: Sequence[Round]) -> list[float]:
    """Reciprocal rank, 0..1, of the right answer of each round; their mean is the MRR.

    Args:
        predictions: One number per candidate and round, larger is better.
        references: One `Round` each.

    Raises:
        ValueError: Lengths differ, a score is nan or `gold_index` is out of range.
    """
    return [1.0 / place for place in ranks(predictions, references)]


class VisDialMetric(ScoredMetric):
    """`visdial_mrr`, `visdial_r1`, `visdial_r5`, `visdial_r10`, 0..100, and `visdial_mean_rank`, 1 is best.

    `visdial_ndcg`, 0..100, is the mean over the rounds that have a relevant candidate; it is missing if none has.
    """

    key = "visdial_mrr"
    unit = "0..1, reciprocal rank"
    example_features = datasets.Features(
        {
            "predictions": datasets.Sequence(datasets.Value("float64")),
            "references": {
                "gold_index": datasets.Value("int64"),
                "relevance": datasets.Sequence(datasets.Value("float64")),
            },
        }
    )
    scores = staticmethod(scores)

    def aggregate(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        """See `ScoredMetric.aggregate`; all the keys that the class lists."""
        places = ranks(predictions, references)
        result = {self.key: 100.0 * mean([1.0 / place for place in places])}
        for depth in (1, 5, 10):
            result[f"visdial_r{depth}"] = 100.0 * mean([float(place <= depth) for place in places])
        result["visdial_mean_rank"] = mean([float(place) for place in places])
        gains = [ndcg(row, each["relevance"]) for row, each in zip(predictions, references, strict=True)]
        if not all(math.isnan(gain) for gain in gains):
            result["visdial_ndcg"] = 100.0 * mean(gains)
        return result
