"""Beam search whose beams read their prefix once.

The beams of a row are branches of one tree behind its prefix (`branches`): the prefix passes through the LLM once, its
keys and values are kept once, and a beam that goes on from another needs no copy of them. The search takes the same
steps as transformers' `generate`, so texts and scores are equal.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from instructkit.evaluation.branches import (
    DecoderBranches,
    EncoderDecoderBranches,
    project,
    start_token,
    why_no_branches,
    without_padding,
)
from instructkit.prompts.protocols import Decoding

_NEVER = -1e9
"""Score that no text has; added to a score in float32, it leaves nothing of it."""


class Beams(NamedTuple):
    """The best text of each row.

    Attributes:
        ids: its tokens, an encoder-decoder's behind its start token, `[rows, longest]`.
        scores: its log-likelihood in nats over a power of its length, `[rows]`.
    """

    ids: Tensor
    scores: Tensor


def why_beams_read_alone(language_model: PreTrainedModel, longest: int = 0) -> str | None:
    """Why every beam reads the prefix itself; None where the beams of a row share it.

    Args:
        language_model: the LLM.
        longest: tokens of the longest prefix and its longest text.
    """
    # LLM.int8 rounds a row by the rows beside it (arXiv 2208.07339, section 3.2).
    if getattr(language_model, "is_quantized", False):
        return "quantised weights were not compared"
    return why_no_branches(language_model.config, longest)


@torch.no_grad()
def search_beams(
    language_model: PreTrainedModel,
    prefix_embeds: Tensor,
    prefix_mask: Tensor,
    decoding: Decoding,
    *,
    end: int,
    fill: int,
) -> Beams:
    """Find the best text of each row.

    Args:
        language_model: that `why_beams_read_alone` says nothing against, in evaluation mode.
        prefix_embeds: what it reads, `[rows, length, width]`.
        prefix_mask: 1 for tokens, 0 for padding on any side, `[rows, length]`.
        decoding: beams, penalties and limits in new tokens; at least two beams.
        end: id of the end token.
        fill: id that rows are filled up with.
    """
    model = language_model.get_base_model() if hasattr(language_model, "get_base_model") else language_model
    embeds, lengths = without_padding(prefix_embeds, prefix_mask.bool())
    most = decoding.most_new_tokens(not model.config.is_encoder_decoder)
    branches: DecoderBranches | EncoderDecoderBranches
    if model.config.is_encoder_decoder:
        branches = EncoderDecoderBranches(model, embeds, lengths, most, room=decoding.num_beams * (most - 1))
        written = lengths.new_full((len(embeds), 1), start_token(model.config))
        known = torch.zeros(1, 1, dtype=torch.long, device=embeds.device)
        hidden = branches.read(written, known, torch.ones(1, 1, 1, dtype=torch.bool, device=embeds.device))
    else:
        branches = DecoderBranches(model, embeds, lengths, room=decoding.num_beams * (most - 1))
        written = lengths.new_empty(len(embeds), 0)
        known = written[:1]
        hidden = branches.root[:, None]
    search = _Search(written, decoding, most, end, fill)
    # What a beam's last token attends to among the states behind the prefix, [rows, beams, states].
    visible = torch.ones(len(embeds), decoding.num_beams, known.shape[1], dtype=torch.bool, device=embeds.device)
    itself = torch.eye(decoding.num_beams, dtype=torch.bool, device=embeds.device)
    while True:
        parent = search.step(project(model, hidden))
        if (going := search.going).numel() == 0:
            return search.best
        if len(going) < len(parent):
            search.keep(going)
            branches.keep(going)
            parent, visible = parent[going], visible[going]
        visible = torch.cat([_take(visible, parent), itself.expand(len(going), -1, -1)], dim=2)
        known = torch.cat([known, known.new_full((1, decoding.num_beams), search.length)], dim=1)
        hidden = branches.read(search.written[:, :, -1], known, visible)


class _Search:
    """The beams of rows: those that go on, and the best that have ended.

    Args:
        written: tokens that every text begins with, `[rows, tokens]`.
        decoding: beams, penalties and limits in new tokens.
        most: new tokens after which a text ends.
        end: id of the end token.
        fill: id that rows are filled up with.

    Attributes:
        written: tokens of the beams that go on, best first, `[rows, beams, tokens]`.
        length: new tokens of each.
    """

    def __init__(self, written: Tensor, decoding: Decoding, most: int, end: int, fill: int) -> None:
        self.decoding, self.beams, self.most, self.end = decoding, decoding.num_beams, most, end
        self.length_penalty, self.begin = decoding.length_penalty, written.shape[1]
        self.length = 0
        rows = len(written)
        self.written = written[:, None].expand(-1, self.beams, -1)
        # All beams begin alike; only the first one's continuations count.
        self.scores = torch.full((rows, self.beams), _NEVER, device=written.device)
        self.scores[:, 0] = 0
        self.ended = written.new_full((rows, self.beams, self.begin + most), fill)
        self.ended_scores = torch.full_like(self.scores, _NEVER)
        self.ended_length = torch.zeros_like(self.ended[:, :, 0])
        self.row = torch.arange(rows, device=written.device)
        self.results = self.ended[:, 0].clone(), self.ended_scores[:, 0].clone(), self.ended_length[:, 0].clone()

    def step(self, logits: Tensor) -> Tensor:
        """Go on by one token.

        Args:
            logits: of the next token of each beam, or of the one beam that all begin with, `[rows, beams or 1, words]`.

        Returns:
            Which beam each of the new ones goes on from, `[rows, beams]`.
        """
        words = logits.shape[2]
        totals = self._penalise(logits.log_softmax(dim=-1)).expand(-1, self.beams, -1) + self.scores[:, :, None]
        # Even if every beam's best token ends it, as many others can go on.
        total, index = totals.flatten(1).topk(2 * self.beams)
        parent, token = index // words, index % words
        tokens = torch.cat([_take(self.written, parent), token[:, :, None]], dim=2)
        self.length += 1
        ends = (token == self.end) | (self.length >= self.most)
        self._end(tokens, total, ends)
        going, chosen = (total + ends * _NEVER).topk(self.beams)
        self.scores, self.written = going, _take(tokens, chosen)
        return parent.gather(1, chosen)

    def _penalise(self, log_probs: Tensor) -> Tensor:
        """Forbid the end token before its time, and penalise repeated tokens, in place: `[rows, beams, words]`."""
        if self.length < self.decoding.min_new_tokens:
            log_probs[:, :, self.end] = -torch.inf
        # As in `generate_ids`: of new tokens, and of an encoder-decoder's start token.
        if self.decoding.repetition_penalty != 1 and self.written.shape[2] > 0:
            repeated = self.written[:, : log_probs.shape[1]]
            log_probs.scatter_(2, repeated, log_probs.gather(2, repeated) * self.decoding.repetition_penalty)
        return log_probs

    def _end(self, tokens: Tensor, total: Tensor, ends: Tensor) -> None:
        """Put the beams that end among those that have; of the continuations only the best `beams` may end."""
        ends = ends & (torch.arange(ends.shape[1], device=ends.device) < self.beams)
        scores = total / self.length**self.length_penalty + ~ends * _NEVER
        self.ended_scores, best = torch.cat([self.ended_scores, scores], dim=1).topk(self.beams)
        filled = self.ended[:, :1].expand(-1, ends.shape[1], -1).clone()
        filled[:, :, : tokens.shape[2]] = tokens
        self.ended = _take(torch.cat([self.ended, filled], dim=1), best)
        lengths = ends * self.length
        self.ended_length = torch.cat([self.ended_length, lengths], dim=1).gather(1, best)

    @property
    def going(self) -> Tensor:
        """Numbers of the rows in which a beam may still become better than all that have ended."""
        if self.length >= self.most:
            return self.row[:0]
        full = (self.ended_length > 0).all(dim=1)
        # Of its length now: LAVIS's and transformers' rule, though a beam may still gain from a length penalty.
        hope = self.scores[:, 0] / self.length**self.length_penalty
        return (~full | (hope > self.ended_scores[:, -1])).nonzero()[:, 0]

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only; the others have their result."""
        self._write_results()
        self.row, self.written, self.scores = self.row[rows], self.written[rows], self.scores[rows]
        self.ended, self.ended_scores = self.ended[rows], self.ended_scores[rows]
        self.ended_length = self.ended_length[rows]

    def _write_results(self) -> None:
        now = self.ended[:, 0], self.ended_scores[:, 0], self.ended_length[:, 0]
        for result, best in zip(self.results, now, strict=True):
            result[self.row] = best

    @property
    def best(self) -> Beams:
        """The best text of each row, of those that were there at the beginning."""
        self._write_results()
        ids, scores, lengths = self.results
        return Beams(ids[:, : self.begin + int(lengths.max())], scores)


def _take(beams: Tensor, index: Tensor) -> Tensor:
    """The beams of these numbers, `[rows, numbers, ...]`, out of `[rows, beams, ...]`."""
    return beams.gather(1, index[:, :, None].expand(-1, -1, beams.shape[2]))
