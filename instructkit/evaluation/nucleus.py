"""Nucleus sampling whose random numbers belong to the row: a text does not depend on the rows beside it."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor
from transformers import LogitsProcessor


class NucleusDraw(LogitsProcessor):
    """Draws each row's next token from its nucleus; a greedy search then takes it.

    The nucleus is the smallest set of the most probable tokens that together have the probability `top_p` (Holtzman et
    al. 2020, arXiv 1904.09751), as transformers' `top_p` takes it. The token comes from one number of the row's own
    generator, so it is the same in any batch, on any rank and machine, up to rounding of the probabilities.

    Args:
        draws: a random number generator a row.
        top_p: probability of the nucleus, up to 1.
    """

    def __init__(self, draws: Sequence[Random], top_p: float) -> None:
        self.draws, self.top_p = draws, top_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `[rows, vocabulary]` that leave each row its drawn token alone."""
        chances, tokens = scores.double().softmax(-1).sort(dim=-1, descending=True, stable=True)
        before = chances.cumsum(-1) - chances
        inside = torch.where(before < self.top_p, chances, 0.0)
        inside[..., 0] = chances[..., 0]
        reached = inside.cumsum(-1)
        drawn = torch.tensor([draw.random() for draw in self.draws], dtype=torch.float64, device=scores.device)
        place = (reached <= drawn[:, None] * reached[:, -1:]).sum(-1, keepdim=True)
        last = (inside > 0).sum(-1, keepdim=True) - 1
        token = tokens.gather(-1, torch.minimum(place, last))
        return torch.full_like(scores, float("-inf")).scatter(-1, token, 0.0)
