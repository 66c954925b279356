"""A causal LLM that reads texts alone, in training: rows of tokens, each token told from those before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from instructkit.config.settings import ThroughputConfig
from instructkit.models.instruct_blip import IGNORED, AnswerLoss
from instructkit.models.packable import can_pack
from instructkit.models.packing import Rows, packed_rows


class CausalText(nn.Module):
    """An LLM with the loss of language modelling.

    Args:
        llm: a decoder-only LLM of transformers.
        throughput: whether its rows are packed.
    """

    instruction_aware = False
    fresh: frozenset[str] = frozenset()

    def __init__(self, llm: Any, throughput: ThroughputConfig) -> None:
        super().__init__()
        self.language_model, self.throughput = llm, throughput
        self.hidden_size: int = llm.config.hidden_size

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> AnswerLoss:
        """Negative log-likelihood of the told tokens; of a row the first is none, as no token stands before it.

        Rows are read end to end as one, without padding, where the LLM allows it; each sees itself alone.

        Args:
            input_ids: padded on the right, `[rows, length]`.
            attention_mask: 1 for tokens and 0 for padding, `[rows, length]`.
            labels: the tokens that are told and -100 for the others, `[rows, length]`.
        """
        kept = attention_mask.bool()
        lengths = attention_mask.sum(1).tolist()
        rows = Rows(lengths, input_ids.device)
        if self.throughput.packing and can_pack(self.language_model, max(lengths)):
            packed = {"input_ids": input_ids[kept][None], "position_ids": rows.positions[None]}
            with packed_rows(self.language_model, rows):
                logits = self.language_model(**packed, use_cache=False).logits[0]
        else:
            told = self.language_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
            logits = told.logits[kept]
        targets, owner = labels[kept][1:], rows.owner[1:]
        # The last token of a row does not tell the first of the next.
        wanted = (targets != IGNORED) & (rows.positions[1:] > 0)
        losses = nn.functional.cross_entropy(logits[:-1][wanted].float(), targets[wanted], reduction="none")
        each = torch.zeros(len(lengths), device=losses.device).index_add(0, owner[wanted], losses.detach())
        return AnswerLoss(losses.sum(), len(losses), each)
