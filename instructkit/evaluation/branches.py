"""An LLM that has read prefixes once and goes on from them along the branches of a tree.

The states of a tree stand in one row behind their prefix; each attends to the prefix and to its own ancestors. Their
positions are those that they would have in a row of their own, so the hidden states are equal, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, EncoderDecoderCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from instructkit.models.packable import why_not_plain

BRANCHING_ENCODER_DECODERS = frozenset({"mt5", "t5"})
"""Encoder-decoders (`model_type`) whose decoder goes on along branches, by test."""


def why_no_branches(config: PretrainedConfig, longest: int = 0) -> str | None:
    """Why an LLM cannot go on along several branches behind one prefix; None if it can.

    Args:
        config: of the LLM.
        longest: tokens of the longest prefix with its longest branch.
    """
    if (kernel := config._attn_implementation) not in ("sdpa", "eager"):
        return f"attention by {kernel} takes no mask of a tree"
    if not config.is_encoder_decoder:
        return why_not_plain(config, longest)
    if config.model_type not in BRANCHING_ENCODER_DECODERS:
        return f"{config.model_type} is none of the encoder-decoders that were compared"
    return None


def without_padding(embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move the tokens to the left, cut to the longest prefix `[batch, longest, width]`, lengths `[batch]`."""
    lengths = mask.sum(dim=1)
    order = mask.int().argsort(dim=1, descending=True, stable=True)[:, : int(lengths.max())]
    return embeds.gather(1, order[:, :, None].expand(-1, -1, embeds.shape[2])), lengths


def start_token(config: PretrainedConfig) -> int:
    """The token that an encoder-decoder's answer begins with."""
    if config.decoder_start_token_id is None:
        raise ValueError(f"the {config.model_type} model's config has no decoder_start_token_id")
    return int(config.decoder_start_token_id)


def project(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Project `[states, width]` onto the vocabulary in float32, as the forward methods of the compared classes do."""
    config = model.config
    if getattr(config, "scale_decoder_outputs", False):
        hidden = hidden * config.d_model**-0.5
    logits: Tensor = model.get_output_embeddings()(hidden).float()
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


class DecoderBranches:
    """A decoder-only LLM that has read the prefixes.

    Args:
        model: the LLM with its head.
        embeds: the prefixes, padded on the right, `[rows, length, width]`.
        lengths: their tokens, `[rows]`.
        room: states that will be read and kept; memory for them is set aside.

    Attributes:
        first: least depth of a state in `read`; the root, of depth 0, is the prefix's last token.
        root: its hidden state, `[rows, width]`.
    """

    first = 1

    def __init__(self, model: PreTrainedModel, embeds: Tensor, lengths: Tensor, room: int = 0) -> None:
        self.decoder, self.lengths, self.prefix = model.base_model, lengths, embeds.shape[1]
        # Every layer keeps all tokens: a sliding layer would drop what the next pass needs.
        self.cache = _roomy(room)
        # No mask is needed: padding is on the right, where causal attention does not look.
        output = self.decoder(inputs_embeds=embeds, use_cache=True, **_cached(self.decoder, self.cache))
        self.root: Tensor = output.last_hidden_state[torch.arange(len(embeds)), lengths - 1]

    def read(self, token: Tensor, depth: Tensor, visible: Tensor) -> Tensor:
        """Read states of the tree, which are kept until `forget`.

        Args:
            token: of each state, `[rows or 1, states]`.
            depth: of all kept states and then of these: tokens from the root, `[rows or 1, kept + states]`.
            visible: whether a state attends to another, `[rows or 1, states, kept + states]`.

        Returns:
            Their hidden states, `[rows, states, width]`.
        """
        rows, width = len(self.lengths), token.shape[1]
        place = torch.arange(self.prefix, device=self.lengths.device)
        branch = self.lengths[:, None] + depth - 1
        query, key = branch[:, -width:], torch.cat([place.expand(rows, -1), branch], dim=1)
        before = (place < self.lengths[:, None])[:, None].expand(-1, width, -1)
        seen = torch.cat([before, visible.expand(rows, -1, -1)], dim=2)
        output = self.decoder(
            input_ids=token.expand(rows, -1),
            attention_mask=self._masks(seen, query[:, :, None] - key[:, None, :]),
            position_ids=query,
            use_cache=True,
            **_cached(self.decoder, self.cache),
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def forget(self, states: int) -> None:
        """Forget the last states that were read."""
        self.cache.crop(-states)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.lengths = self.lengths[rows]
        self.cache.batch_select_indices(rows)

    def _masks(self, visible: Tensor, distance: Tensor) -> Tensor | dict[str, Tensor]:
        config, dtype = self.decoder.config, self.decoder.dtype
        window = getattr(config, "sliding_window", None)
        kinds = set(getattr(config, "layer_types", None) or ())
        if window is None or kinds == {"full_attention"}:
            return _additive(visible, dtype)
        near = _additive(visible & (distance < window), dtype)
        if "full_attention" in kinds:
            return {"full_attention": _additive(visible, dtype), "sliding_attention": near}
        return near


class EncoderDecoderBranches:
    """An encoder-decoder that has read the prefixes; the cross-attention's keys and values are computed once.

    Args:
        model: the LLM with its head.
        embeds: the prefixes, padded on the right, `[rows, length, width]`.
        lengths: their tokens, `[rows]`.
        longest: no state of the tree is deeper.
        room: states that will be read and kept; memory for them is set aside.

    Attributes:
        first: least depth of a state in `read`; the root, of depth 0, is the start token.
    """

    first = 0

    def __init__(self, model: PreTrainedModel, embeds: Tensor, lengths: Tensor, longest: int, room: int = 0) -> None:
        self.decoder, self.start, self.longest = model.get_decoder(), start_token(model.config), longest
        self.mask = (torch.arange(embeds.shape[1], device=embeds.device) < lengths[:, None]).long()
        encoded = model.get_encoder()(inputs_embeds=embeds, attention_mask=self.mask)
        self.encoded: Tensor = encoded.last_hidden_state
        self.cache = EncoderDecoderCache(_roomy(room), DynamicCache())

    def read(self, token: Tensor, depth: Tensor, visible: Tensor) -> Tensor:
        """As of `DecoderBranches`; the token of a state of depth 0 is the start token."""
        width = token.shape[1]
        with _position_bias_of(self.decoder, depth[:, -width:], depth, self.longest):
            output = self.decoder(
                input_ids=token.masked_fill(depth[:, -width:] == 0, self.start).expand(len(self.mask), -1),
                attention_mask=_additive(visible, self.decoder.dtype),
                encoder_hidden_states=self.encoded,
                encoder_attention_mask=self.mask,
                use_cache=True,
                **_cached(self.decoder, self.cache),
            )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def forget(self, states: int) -> None:
        """Forget the last states that were read."""
        self.cache.self_attention_cache.crop(-states)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.mask, self.encoded = self.mask[rows], self.encoded[rows]
        self.cache.batch_select_indices(rows)


class _RoomyLayer(DynamicLayer):
    """A layer's keys and values with room behind them, where new ones are written without copying the old ones.

    Args:
        room: tokens that will come behind the first ones.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.store: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values `[rows, heads, tokens, width]`; gives all that are there."""
        old, new = self.get_seq_length(), (key_states, value_states)
        whole = old + key_states.shape[2]
        if self.store is None or whole > self.store[0].shape[2]:
            size = whole + (self.room if self.store is None else 0)
            store = tuple(part.new_empty(*part.shape[:2], size, part.shape[3]) for part in new)
            for place, kept in zip(store, (self.keys, self.values) if old else (), strict=bool(old)):
                place[:, :, :old] = kept
            self.store = store[0], store[1]
            self.device, self.is_initialized = key_states.device, True
        for place, part in zip(self.store, new, strict=True):
            place[:, :, old:whole] = part
        self._show(whole)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only keep these rows."""
        if self.store is not None:
            self.store = self.store[0][indices], self.store[1][indices]
            self._show(self.get_seq_length())

    def _show(self, tokens: int) -> None:
        if self.store is not None:
            self.keys, self.values = (part[:, :, :tokens] for part in self.store)


def _roomy(room: int) -> DynamicCache:
    cache = DynamicCache()
    cache.layer_class_to_replicate = partial(_RoomyLayer, room)
    return cache


@contextmanager
def _position_bias_of(decoder: PreTrainedModel, query: Tensor, key: Tensor, longest: int) -> Iterator[None]:
    """Have T5's relative position bias follow depths in the tree, `[rows, states]`, not the place in the row."""
    modules = [module for module in decoder.modules() if getattr(module, "has_relative_attention_bias", False)]
    try:
        for module in modules:
            by_distance = module.compute_bias(longest, longest)[0]
            bias = by_distance[:, query[:, :, None], key[:, None, :]].transpose(0, 1)
            module.compute_bias = _always(bias)
        yield
    finally:
        for module in modules:
            module.__dict__.pop("compute_bias", None)


def _always(value: Tensor) -> Callable[..., Tensor]:
    return lambda *_, **__: value


def _cached(decoder: PreTrainedModel, cache: Cache) -> dict[str, Cache]:
    """The cache under the name that the forward method has for it; it differs between versions of transformers."""
    name = "cache" if "cache" in signature(decoder.forward).parameters else "past_key_values"
    return {name: cache}


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """`[rows, queries, keys]` booleans as the mask `[rows, 1, queries, keys]` that eager and sdpa both add."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]
