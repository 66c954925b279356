"""Learning rates by hand."""

from __future__ import annotations

import math

import pytest

from instructkit.config.settings import TrainingConfig
from instructkit.training.schedule import learning_rate

PAPER = TrainingConfig(max_steps=60_000, warmup_steps=1000, warmup_from=1e-8, learning_rate=1e-5)


def test_warm_up_is_linear_and_the_cosine_ends_at_its_minimum():
    assert learning_rate(0, PAPER) == 1e-8
    assert learning_rate(500, PAPER) == pytest.approx((1e-8 + 1e-5) / 2)
    assert learning_rate(1000, PAPER) == 1e-5
    assert learning_rate(1000 + 59_000 // 2, PAPER) == pytest.approx(0.5e-5)
    assert learning_rate(1000 + 59_000 // 4, PAPER) == pytest.approx(1e-5 * (2 + math.sqrt(2)) / 4)
    assert learning_rate(60_000, PAPER) == pytest.approx(0, abs=1e-20)
    assert learning_rate(59_999, PAPER) > 0


def test_without_warm_up_and_with_a_floor():
    config = TrainingConfig(max_steps=4, warmup_steps=0, learning_rate=1.0, min_learning_rate=0.2)
    rates = [learning_rate(step, config) for step in range(5)]
    half = math.sqrt(0.5)
    assert rates == pytest.approx([1.0, 0.2 + 0.4 * (1 + half), 0.6, 0.2 + 0.4 * (1 - half), 0.2])


def test_a_run_shorter_than_its_warm_up_stays_below_the_peak():
    config = TrainingConfig(max_steps=10, warmup_steps=1000, warmup_from=0.0, learning_rate=1.0)
    assert [learning_rate(step, config) for step in range(10)] == pytest.approx([step / 10 for step in range(10)])
