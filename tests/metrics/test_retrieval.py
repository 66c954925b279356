"""Recall of images that search texts and of texts that search images, by hand; intervals that draw images."""

from __future__ import annotations

import numpy as np
import pytest

from instructkit.evaluation import metrics
from instructkit.evaluation.bootstrap import interval, intervals
from instructkit.evaluation.metrics.retrieval import Places
from instructkit.evaluation.responses import Answer

PLACES: list[Places] = [
    {"text": 1, "images": [1, 3]},
    {"text": 5, "images": [11]},
    {"text": 0, "images": [5, 0, 10]},
    {"text": 10, "images": [1, 1]},
]
TEXTS = [["a", "b"], ["c"], ["d", "e", "f"], ["g", "h"]]


def test_recalls_by_hand() -> None:
    """TR is over 4 images, IR over their 8 texts; a place of 0 is found at no depth."""
    found = metrics.load("retrieval").compute(predictions=PLACES, references=TEXTS)
    assert found == {
        "tr_r1": 25.0,
        "tr_r5": 50.0,
        "tr_r10": 75.0,
        "ir_r1": pytest.approx(100 * 3 / 8),
        "ir_r5": pytest.approx(100 * 5 / 8),
        "ir_r10": pytest.approx(100 * 6 / 8),
    }


@pytest.mark.parametrize(
    ("places", "texts", "told"),
    [
        ({"text": 1, "images": [1]}, ["a", "b"], "prediction 0 has 1 places for 2 texts"),
        ({"text": 1, "images": []}, [], "prediction 0 has 0 places for 0 texts"),
        ({"text": -1, "images": [1]}, ["a"], "prediction 0 has a place below 0"),
    ],
)
def test_what_does_not_fit_is_an_error(places: Places, texts: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        metrics.load("retrieval").aggregate([places], [texts])


def test_intervals_draw_images_with_all_their_texts() -> None:
    """The texts of an image are found or missed together: as wide as over 40 images, not as over 200 texts."""
    rng = np.random.default_rng(0)
    answers = [
        Answer(
            example=str(number),
            images=[f"{number}.jpg"],
            prediction={"text": int(rng.integers(1, 3)), "images": [1 + number % 2] * 5},
            reference=["text"] * 5,
        )
        for number in range(40)
    ]
    found = intervals("retrieval", answers)
    assert list(found) == ["tr_r1", "tr_r5", "tr_r10", "ir_r1", "ir_r5", "ir_r10"]
    assert found["tr_r1"] == interval("retrieval", answers)
    assert found["ir_r5"] == (100.0, 100.0)
    assert found["ir_r1"] is not None
    low, high = found["ir_r1"]
    share = [100 * np.mean(rng.choice([0, 1], 40)) for _ in range(1000)]
    width = np.quantile(share, 0.975) - np.quantile(share, 0.025)
    assert high - low == pytest.approx(width, rel=0.2)
    assert intervals("retrieval", answers[:1])["ir_r1"] is None
    assert intervals("exact_match", [Answer(example="a", prediction="a", reference=["a"])]) == {}
