"""Examples that a report shows: some that were right, some that were wrong, the same ones every time."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from statistics import median
from typing import Any

from instructkit.evaluation.responses import Answer, Response, ResponseLog
from instructkit.reports.calibration import is_right

EACH = 4
"""Number of right and of wrong ones of each benchmark."""
_CANDIDATES = 5
_PICTURES = 4
"""Pictures of a caption's search that are shown."""


def choose(answers: Sequence[Answer], scores: Sequence[float], metric: str) -> dict[str, tuple[bool, float]]:
    """Ids of the examples to show, whether each was right, and its score.

    Right is a score above one half; of captions, which are never right or wrong, above the median. Under the area
    under the ROC curve, which no single example has, right is the better candidate. Which ones are
    taken follows from a checksum of the ids, so that nobody picks them.

    Args:
        answers: scored ones.
        scores: one an answer; nan for one that the metric leaves out.
        metric: name of the metric.
    """
    valid = [(answer, score) for answer, score in zip(answers, scores, strict=True) if not math.isnan(score)]
    bar = median(score for _, score in valid) if metric == "cider" and valid else 0.5
    valid.sort(key=lambda pair: (zlib.crc32(pair[0].example.encode()), pair[0].example))
    found: dict[bool, dict[str, tuple[bool, float]]] = {True: {}, False: {}}
    for answer, score in valid:
        right = is_right(metric, answer, score) if metric == "roc_auc" else score > bar
        if len(found[right]) < EACH:
            found[right][answer.example] = (right, score)
    return found[True] | found[False]


def case(response: Response, right: bool, score: float) -> dict[str, Any]:
    """One example as the report holds it."""
    best = response.ranked[0][1] if response.ranked else 0.0
    return {
        "example": response.example,
        "images": response.images,
        "clip": list(response.clip),
        "prompt": response.prompt,
        "cut": response.cut,
        "text": response.text,
        "expected": list(dict.fromkeys(response.expected)),
        "right": right,
        "score": score,
        "candidates": [
            {"text": text, "score": value, "probability": (response.confidence or 0.0) * math.exp(value - best)}
            for text, value in response.ranked[:_CANDIDATES]
        ],
    }


def searches(log: ResponseLog, answers: Sequence[Answer], scores: Sequence[float]) -> list[dict[str, Any]]:
    """Cases of a retrieval: pictures with the captions that they find first, then captions with such pictures.

    Args:
        log: of the benchmark.
        answers: scored ones.
        scores: 1 for a picture that finds one of its captions first, else 0.
    """
    found = []
    firsts = [float(answer.prediction["images"][0] == 1) for answer in answers]
    for by_picture, right in ((True, scores), (False, firsts)):
        chosen = choose(answers, right, "retrieval")
        found += [_search(response, *chosen[response.example], by_picture) for response in log.responses(chosen)]
    return found


def _search(response: Response, right: bool, score: float, by_picture: bool) -> dict[str, Any]:
    """The search of a picture, or of its first caption."""
    hits = response.ranked if by_picture else response.found[0]
    plain = case(response, right, score) | {"candidates": [], "hits": hits[:_CANDIDATES], "text": hits[0][0]}
    if by_picture:
        return {**plain, "prompt": "", "cut": []}
    return {**plain, "images": [path for path, _ in hits[:_PICTURES]], "expected": response.images}
