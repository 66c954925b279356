"""Nucleus sampling by row against transformers' own nucleus and the probabilities that it leaves."""

from __future__ import annotations

from random import Random

import pytest
import torch
from transformers import TopPLogitsWarper

from instructkit.evaluation.nucleus import NucleusDraw

NONE = torch.zeros(1, 0, dtype=torch.long)


def drawn(scores: torch.Tensor, seeds: list[str], top_p: float) -> list[int]:
    out = NucleusDraw([Random(seed) for seed in seeds], top_p)(NONE, scores)
    assert (out.isfinite().sum(-1) == 1).all()
    return out.argmax(-1).tolist()


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
def test_tokens_come_as_often_as_transformers_nucleus_has_them(top_p: float) -> None:
    scores = torch.randn(1, 20, generator=torch.Generator().manual_seed(1)) * 2
    expected = TopPLogitsWarper(top_p)(NONE, scores).softmax(-1)[0] if top_p < 1 else scores.softmax(-1)[0]
    count = 20_000
    found = torch.bincount(
        torch.tensor(drawn(scores.expand(count, -1), [str(n) for n in range(count)], top_p)), minlength=20
    )
    assert not found[expected == 0].any()
    deviation = (expected * (1 - expected) / count).sqrt()
    assert ((found / count - expected).abs() <= 4.5 * deviation + 1e-9).all()


def test_a_row_draws_the_same_token_in_any_batch() -> None:
    scores = torch.randn(6, 50, generator=torch.Generator().manual_seed(2))
    seeds = [f"picture {n}" for n in range(6)]
    whole = drawn(scores, seeds, 0.9)
    assert [drawn(scores[n : n + 1], [seeds[n]], 0.9)[0] for n in range(6)] == whole
    assert drawn(scores.flip(0), seeds[::-1], 0.9) == whole[::-1]
    assert len({*drawn(scores[:1].expand(200, -1), [str(n) for n in range(200)], 0.9)}) > 5


def test_forbidden_tokens_are_never_drawn() -> None:
    scores = torch.full((50, 5), float("-inf"))
    scores[:, 3] = -4.0
    assert drawn(scores, [str(n) for n in range(50)], 1.0) == [3] * 50
