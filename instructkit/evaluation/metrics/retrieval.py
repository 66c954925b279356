"""Recall at 1, 5 and 10 of images that search texts (TR) and of texts that search images (IR).

Source: `RetrievalTask` of salesforce/LAVIS, `lavis/tasks/retrieval.py`: an image's search is right if any of its texts
is among the first, a text's if its image is. There a sort decides between equal scores; here places are given, and who
gives them counts ties against the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import datasets

from .base import ScoredMetric, check_lengths, mean

DEPTHS = (1, 5, 10)


class Places(TypedDict):
    """Places from 1 of what is searched for; 0 where it was not found at all.

    Attributes:
        text: of the best of the image's texts.
        images: of the image, for each of its texts.
    """

    text: int
    images: list[int]


def measures(predictions: Sequence[Places], references: Sequence[Sequence[str]]) -> dict[str, list[list[float]]]:
    """For each measure, and each image, 1 or 0 for each search: one of the image, or one of each of its texts.

    Args:
        predictions: places, one `Places` an image.
        references: the image's texts.

    Raises:
        ValueError: an image has no text, not one place for each, or a place below 0.
    """
    check_lengths(predictions, references)
    for index, (places, texts) in enumerate(zip(predictions, references, strict=True)):
        if not 0 < len(texts) == len(places["images"]):
            raise ValueError(f"prediction {index} has {len(places['images'])} places for {len(texts)} texts")
        if min(places["text"], *places["images"]) < 0:
            raise ValueError(f"prediction {index} has a place below 0: places count from 1, and 0 is not found")
    of: dict[str, Callable[[Places], Sequence[int]]] = {
        "tr": lambda places: [places["text"]],
        "ir": lambda places: places["images"],
    }
    return {
        f"{kind}_r{depth}": [[float(0 < place <= depth) for place in found(places)] for places in predictions]
        for kind, found in of.items()
        for depth in DEPTHS
    }


def scores(predictions: Sequence[Places], references: Sequence[Sequence[str]]) -> list[float]:
    """1 for each image that finds one of its texts first, else 0."""
    return [found for (found,) in measures(predictions, references)["tr_r1"]]


class RetrievalMetric(ScoredMetric):
    """`tr_r1`, `tr_r5`, `tr_r10`, of images that search texts, and `ir_r1`, `ir_r5`, `ir_r10`, 0..100."""

    key = "tr_r1"
    also = ("ir_r1",)
    example_features = datasets.Features(
        {
            "predictions": {"text": datasets.Value("int64"), "images": datasets.Sequence(datasets.Value("int64"))},
            "references": datasets.Sequence(datasets.Value("string")),
        }
    )
    scores = staticmethod(scores)
    measures = staticmethod(measures)

    def aggregate(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        """See `ScoredMetric.aggregate`; all the keys that the class lists."""
        return {
            name: 100.0 * mean([score for scores in found for score in scores])
            for name, found in measures(predictions, references).items()
        }
