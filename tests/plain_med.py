"""BLIP's mixture of encoder and decoder as slowly and plainly as it goes, from the weights' names alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tests.plain_stage1 import Plain


class PlainMed(NamedTuple):
    """A model.

    Attributes:
        plain: its arithmetic, over weights whose attention is called as a Q-Former's.
        enc: the token that a text begins with where it is read with an image.
    """

    plain: Plain
    enc: int

    @classmethod
    def of(cls, model: torch.nn.Module) -> PlainMed:
        """Of a `Blip`, whose modules then take no part."""
        config = model.config
        text = config.text_config
        weights = {
            name.replace("attention.self.", "attention.attention."): weight.detach()
            for name, weight in model.named_parameters(remove_duplicate=False)
        }
        plain = Plain(weights, text.num_attention_heads, text.num_hidden_layers, text.layer_norm_eps, text.bos_token_id)
        return cls(plain, config.enc_token_id)

    def read(self, side: str, ids: Sequence[int], states: Tensor | None, causal: bool) -> Tensor:
        """Last states of one text; `side` is the stem of the text transformer's names."""
        plain = self.plain
        words = plain.weights[f"{side}.embeddings.word_embeddings.weight"][list(ids)]
        places = plain.weights[f"{side}.embeddings.position_embeddings.weight"][: len(ids)]
        x = plain.norm(f"{side}.embeddings.LayerNorm", words + places)
        for number in range(plain.layers):
            name = f"{side}.encoder.layer.{number}"
            seen = [list(range(place + 1 if causal else len(ids))) for place in range(len(ids))]
            x = plain.attend(f"{name}.attention", x, x, seen)
            if states is not None:
                x = plain.attend(f"{name}.crossattention", x, states, [list(range(len(states)))] * len(ids))
            x = plain.feed(name, "", x)
        return x

    def embed_image(self, features: Tensor) -> Tensor:
        projected = self.plain.linear("vision_proj", features[0])
        return projected / projected.norm()

    def embed_text(self, ids: Sequence[int]) -> Tensor:
        projected = self.plain.linear("text_proj", self.read("text_encoder", ids, None, False)[0])
        return projected / projected.norm()

    def read_with(self, features: Tensor, ids: Sequence[int]) -> Tensor:
        return self.read("text_encoder", [self.enc, *ids[1:]], features, False)

    def judge(self, features: Tensor, ids: Sequence[int]) -> Tensor:
        return self.plain.linear("itm_head", self.read_with(features, ids)[0])

    def tell(self, states: Tensor, ids: Sequence[int]) -> Tensor:
        """Logits at each place of a text that is written."""
        head = "text_decoder.cls.predictions"
        hidden = self.read("text_decoder.bert", [self.plain.dec, *ids[1:]], states, True)
        hidden = self.plain.linear(f"{head}.transform.dense", hidden)
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        hidden = self.plain.norm(f"{head}.transform.LayerNorm", hidden)
        words = self.plain.weights["text_decoder.bert.embeddings.word_embeddings.weight"]
        return hidden @ words.T + self.plain.weights[f"{head}.bias"]
