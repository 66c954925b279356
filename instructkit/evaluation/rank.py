"""Log-likelihood of candidates: the prefix runs once a question, a shared beginning of candidates once a trie.

The states of a trie run packed in one row behind their prefix (`branches`), so the scores equal one full forward a
candidate.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any, Literal

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
from instructkit.evaluation.trie import CandidateTrie
from instructkit.models.packable import depends_on_longest

Rule = Literal["sum", "mean"]

# Attention is quadratic in a row: more states than this cost less in several rows than in one.
_ROW_STATES = 512


def score_candidates(
    language_model: PreTrainedModel,
    prefix_embeds: Tensor,
    prefix_mask: Tensor,
    tries: CandidateTrie | Sequence[CandidateTrie],
    *,
    rule: Rule = "sum",
    max_tokens: int = 16384,
) -> list[Tensor]:
    """Score every candidate of every question.

    LAVIS's ranking is `rule="sum"`, with the end token in the trie for encoder-decoders and without for decoders.
    Prefixes may be padded on any side and in the middle: padding is taken out, so a score depends on nothing but its
    own question. Equal to one full forward a candidate; LLMs that `why_no_branches` names get exactly
    that.

    Args:
        language_model: a causal or sequence-to-sequence language model with its head, in eval mode.
        prefix_embeds: what precedes the candidates (decoder) or enters the encoder, `[batch, length, width]`.
        prefix_mask: 1 for tokens, 0 for padding, `[batch, length]`.
        tries: one trie for all questions, or one for each.
        rule: "sum" of the token log-probabilities, or their "mean"; the end token counts where the trie has one.
        max_tokens: most token positions of one forward pass, which bounds the memory whatever the number of
            candidates; a single prefix or path that is longer runs alone.

    Returns:
        For each question its candidates' log-likelihoods in nats, higher is better, `[candidates]` in float32.

    Raises:
        ValueError: the numbers of questions, masks and tries differ, a prefix is empty, the rule is unknown or
            `max_tokens` is not positive.
    """
    questions = [tries] * len(prefix_embeds) if isinstance(tries, CandidateTrie) else list(tries)
    _check(prefix_embeds, prefix_mask, questions, rule, max_tokens)
    model = language_model.get_base_model() if hasattr(language_model, "get_base_model") else language_model
    with torch.no_grad():
        embeds, lengths = without_padding(prefix_embeds, prefix_mask.bool())
        longest = max(embeds.shape[1], *(trie.longest for trie in questions))
        whole = embeds.shape[1] + max(trie.longest for trie in questions)
        sums_of = _packed_sums if why_no_branches(model.config, whole) is None else _row_sums
        group = max(1, max_tokens // longest)
        sums: list[Tensor] = []
        for start in range(0, len(questions), group):
            part = slice(start, start + group)
            sums += sums_of(model, embeds[part], lengths[part], questions[part], max_tokens)
        return by_rule(sums, questions, rule)


def by_rule(sums: Sequence[Tensor], tries: Sequence[CandidateTrie], rule: Rule) -> list[Tensor]:
    """Scores of candidates, `[candidates]` a question, from the sums of their tokens' log-probabilities."""
    if rule == "sum":
        return list(sums)
    return [total / trie.lengths.to(total) for total, trie in zip(sums, tries, strict=True)]


def _check(embeds: Tensor, mask: Tensor, tries: Sequence[CandidateTrie], rule: str, max_tokens: int) -> None:
    if rule not in ("sum", "mean"):
        raise ValueError(f'unknown score rule "{rule}": use "sum" or "mean"')
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be positive, not {max_tokens}")
    if embeds.shape[:2] != mask.shape:
        raise ValueError(f"prefix {tuple(embeds.shape)} and mask {tuple(mask.shape)} do not fit")
    if len(tries) != len(embeds):
        raise ValueError(f"{len(embeds)} questions but {len(tries)} tries: give one for all or one for each")
    if not bool(mask.bool().any(dim=1).all()):
        raise ValueError("a prefix is empty: every question needs at least one token that is not padding")


def ranking_note(language_model: PreTrainedModel) -> str | None:
    """A line for the log where no candidates share a pass, which is slower; None where they do."""
    reason = why_no_branches(language_model.config)
    return None if reason is None else f"ranking   one row a candidate, which is slower: {reason}"


# ---- packed: all states of a trie in a row ----


@dataclass(frozen=True)
class _Run:
    """States of several questions that run in one forward pass; one row stands for all where all are equal.

    Attributes:
        token: token of each state, `[questions or 1, states]`.
        depth: its tokens from the root, `[questions or 1, states]`.
        visible: whether a state (rows) attends to a state (columns), `[questions or 1, states, states]`.
    """

    token: Tensor
    depth: Tensor
    visible: Tensor


@dataclass(frozen=True)
class _Edges:
    """Edges to score after one forward pass.

    Attributes:
        state: index of each state that has edges to score in the flattened output, `[states]`.
        count: its number of edges, `[states]`.
        token: token of each edge, `[edges]`.
        slot: where its log-probability goes, as question * (most edges of a question + 1) + edge, `[edges]`.
    """

    state: Tensor
    count: Tensor
    token: Tensor
    slot: Tensor


def _packed_sums(
    model: PreTrainedModel, embeds: Tensor, lengths: Tensor, tries: Sequence[CandidateTrie], max_tokens: int
) -> list[Tensor]:
    # Logits of one projection take no more numbers than the hidden states of one full pass.
    head = model.get_output_embeddings()
    at_once = max(1, max_tokens * head.weight.shape[1] // head.weight.shape[0])
    branches: DecoderBranches | EncoderDecoderBranches
    if model.config.is_encoder_decoder:
        branches = EncoderDecoderBranches(model, embeds, lengths, max(trie.longest for trie in tries))
    else:
        branches = DecoderBranches(model, embeds, lengths)
    return sums_along(branches, partial(project, model), tries, at_once, max_tokens, embeds.device)


def sums_along(
    branches: Any,
    logits_of: Callable[[Tensor], Tensor],
    tries: Sequence[CandidateTrie],
    at_once: int,
    max_tokens: int,
    device: torch.device,
) -> list[Tensor]:
    """Sums of the log-probabilities of candidates, `[candidates]` a question.

    Args:
        branches: reads states of the tries (`DecoderBranches.read`, `forget`, `first`; `root` where that is 1).
        logits_of: `[states, width]` to float32 `[states, vocabulary]`.
        tries: of each question.
        at_once: states whose logits are in memory at once.
        max_tokens: as for `score_candidates`.
        device: where `branches` reads.
    """
    stride = max(trie.edges for trie in tries) + 1
    # The last column of a question stays 0: padded paths point to it or to the columns after their last edge.
    log_probs = torch.zeros(len(tries) * stride, device=device)
    if branches.first:
        edges = _edges(tries, [(0, 1, 0)] * len(tries), 1, stride)
        _score_edges(logits_of, branches.root, edges, log_probs, at_once)
    width = max(1, min(_ROW_STATES, max_tokens // len(tries)))
    for run, edges in _passes(tries, width, branches.first, stride):
        hidden = branches.read(*(field.to(device) for field in (run.token, run.depth, run.visible)))
        branches.forget(run.token.shape[1])
        _score_edges(logits_of, hidden.flatten(0, 1), edges, log_probs, at_once)
    return _path_sums(log_probs.view(len(tries), stride), tries)


def _path_sums(log_probs: Tensor, tries: Sequence[CandidateTrie]) -> list[Tensor]:
    if all(trie is tries[0] for trie in tries):
        return list(log_probs[:, tries[0].paths.to(log_probs.device)].sum(dim=-1))
    return [row[trie.paths.to(row.device)].sum(dim=-1) for row, trie in zip(log_probs, tries, strict=True)]


def _passes(tries: Sequence[CandidateTrie], width: int, first: int, stride: int) -> Iterator[tuple[_Run, _Edges]]:
    """Walk through the tries of all questions side by side, `width` states of each at a time."""
    distinct = {id(trie): trie for trie in tries}
    runs = {key: list(trie.runs(width, first)) for key, trie in distinct.items()}
    nothing = (torch.empty(0, dtype=torch.long), 0)
    for number in range(max(map(len, runs.values()))):
        now = {key: found[number] if number < len(found) else nothing for key, found in runs.items()}
        packed = _pack([(trie, now[key][0]) for key, trie in distinct.items()])
        if len(distinct) > 1:
            row = {key: index for index, key in enumerate(distinct)}
            order = torch.tensor([row[id(trie)] for trie in tries])
            packed = _Run(packed.token[order], packed.depth[order], packed.visible[order])
        spans = [_span(*now[id(trie)]) for trie in tries]
        yield packed, _edges(tries, spans, packed.token.shape[1], stride)


def _span(states: Tensor, ancestors: int) -> tuple[int, int, int]:
    """First and one past the last state that a run adds, and its place in the row."""
    if len(states) == ancestors:
        return 0, 0, 0
    return int(states[ancestors]), int(states[-1]) + 1, ancestors


def _pack(runs: Sequence[tuple[CandidateTrie, Tensor]]) -> _Run:
    width = max(len(states) for _, states in runs)
    token, state = (torch.zeros(len(runs), width, dtype=torch.long) for _ in range(2))
    depth, stop = torch.ones_like(token), torch.zeros_like(token)
    for row, (trie, states) in enumerate(runs):
        here = slice(len(states))
        token[row, here], depth[row, here] = trie.state_token[states], trie.state_depth[states]
        state[row, here], stop[row, here] = states, trie.state_stop[states]
    query, key = state[:, :, None], state[:, None, :]
    # In preorder a state's descendants are the run that ends at its stop; padding has stop 0 and is nobody's ancestor,
    # but must see itself, for an attention row without any key is not a number.
    visible = (key <= query) & (query < stop[:, None, :]) | torch.eye(width, dtype=torch.bool)
    return _Run(token, depth, visible)


def _edges(tries: Sequence[CandidateTrie], spans: Sequence[tuple[int, int, int]], width: int, stride: int) -> _Edges:
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for question, (trie, (start, stop, place)) in enumerate(zip(tries, spans, strict=True)):
        first, last = int(trie.edge_start[start]), int(trie.edge_start[stop])
        parts.append(
            (
                torch.arange(stop - start) + question * width + place,
                trie.edge_start[start : stop + 1].diff(),
                trie.edge_token[first:last],
                torch.arange(first, last) + question * stride,
            )
        )
    return _Edges(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _score_edges(
    logits_of: Callable[[Tensor], Tensor], hidden: Tensor, edges: _Edges, log_probs: Tensor, at_once: int
) -> None:
    """Write the log-probabilities of the edges after the flattened hidden states `[states, width]`."""
    device = hidden.device
    state, token, slot = edges.state.to(device), edges.token.to(device), edges.slot.to(device)
    first = 0
    for start in range(0, len(state), at_once):
        count = edges.count[start : start + at_once]
        last = first + int(count.sum())
        logits = logits_of(hidden[state[start : start + at_once]])
        row = torch.repeat_interleave(count).to(device)
        log_probs[slot[first:last]] = logits[row, token[first:last]] - logits.logsumexp(dim=-1)[row]
        first = last


# ---- rows: one full row a candidate, for classes that cannot be packed ----


def _row_sums(
    model: PreTrainedModel, embeds: Tensor, lengths: Tensor, tries: Sequence[CandidateTrie], max_tokens: int
) -> list[Tensor]:
    rows_of = _encoder_decoder_rows if model.config.is_encoder_decoder else _decoder_rows
    sums = []
    for prefix, length, trie in zip(embeds, lengths.tolist(), tries, strict=True):
        token = torch.cat([trie.edge_token, torch.zeros(1, dtype=torch.long)])[trie.paths].to(embeds.device)
        real = (trie.paths < trie.edges).to(embeds.device)
        logits_of = rows_of(model, prefix[None, :length])
        at_once = max(1, max_tokens // (length + trie.longest))
        if depends_on_longest(model.config, length + trie.longest):
            at_once = 1
        parts = []
        for some, kept in zip(token.split(at_once), real.split(at_once), strict=True):
            longest = int(kept.sum(dim=1).max())
            some, kept = some[:, :longest], kept[:, :longest]
            logits = logits_of(some, kept).float()
            log_probs = logits.gather(2, some[:, :, None])[:, :, 0] - logits.logsumexp(dim=-1)
            parts.append(log_probs.masked_fill(~kept, 0).sum(dim=1))
        sums.append(torch.cat(parts))
    return sums


_Logits = Callable[[Tensor, Tensor], Tensor]


def _decoder_rows(model: PreTrainedModel, prefix: Tensor) -> _Logits:
    """A function from tokens and their mask `[rows, longest]` to the logits `[rows, longest, vocabulary]`."""
    names = signature(model.forward).parameters

    def logits_of(token: Tensor, real: Tensor) -> Tensor:
        rows, longest = token.shape
        embeds = torch.cat([prefix.expand(rows, -1, -1), model.get_input_embeddings()(token).to(prefix)], dim=1)
        mask = torch.cat([real.new_ones(rows, prefix.shape[1]), real], dim=1).long()
        keep = {"logits_to_keep": longest + 1} if "logits_to_keep" in names else {}
        logits: Tensor = model(inputs_embeds=embeds, attention_mask=mask, use_cache=False, **keep).logits
        return logits[:, -longest - 1 : -1]

    return logits_of


def _encoder_decoder_rows(model: PreTrainedModel, prefix: Tensor) -> _Logits:
    """As `_decoder_rows`, with the encoder run once for all rows."""
    encoded = model.get_encoder()(inputs_embeds=prefix).last_hidden_state
    start = start_token(model.config)

    def logits_of(token: Tensor, real: Tensor) -> Tensor:
        rows = len(token)
        shifted = torch.cat([token.new_full((rows, 1), start), token[:, :-1]], dim=1)
        output = model(encoder_outputs=(encoded.expand(rows, -1, -1),), decoder_input_ids=shifted, use_cache=False)
        logits: Tensor = output.logits
        return logits

    return logits_of
