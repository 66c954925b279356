"""The Q-Former of a joined model, from a checkpoint of BLIP-2, InstructBLIP or BERT.

A layer has two feed-forwards, one for queries and one for text. A checkpoint with one of them gives both: from BERT the
queries' starts as a copy of the text's, as in BLIP-2; BLIP-2's published generators lack the text's, which starts as a
copy of the queries' unless it lies beside them (`qformer_text.safetensors`). BERT has no cross-attention, which starts
from random weights, and BERT's token types are left out, as BLIP-2 does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import (
    InstructBlipConfig,
    InstructBlipPreTrainedModel,
    InstructBlipQFormerConfig,
    InstructBlipQFormerModel,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from instructkit.errors import UserError
from instructkit.models.load.parts import (
    Loaded,
    has_qformer,
    read_config,
    read_part,
    read_tokenizer,
)
from instructkit.models.load.qformer_text import QFORMER_TOKENIZER, is_text, put_text, text_of

_FROM_WHOLE = {r"^qformer\.layernorm\.": "embeddings.layernorm.", r"^qformer\.": ""}
_FROM_BERT = {
    r"^bert\.": "",
    r"attention\.self\.": "attention.attention.",
    r"embeddings\.LayerNorm\.": "embeddings.layernorm.",
    r"\.gamma$": ".weight",
    r"\.beta$": ".bias",
}
SHAPE = (  # what the three kinds of configuration call alike
    "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act hidden_dropout_prob "
    "attention_probs_dropout_prob max_position_embeddings initializer_range layer_norm_eps pad_token_id"
)
_FEED_FORWARD = re.compile(r"(?<=\d\.)(intermediate|output)(_query)?(?=\.)")


class Queries(NamedTuple):
    """A Q-Former for a joined model.

    Attributes:
        loaded: `InstructBlipQFormerModel`; feed-forwards that are copies are not fresh.
        joints: query tokens and projection, `Joints`.
        tokenizer: of its text; None where the checkpoint has no embeddings of words.
        note: what it is, in a few words.
    """

    loaded: Loaded
    joints: Loaded
    tokenizer: PreTrainedTokenizerBase | None
    note: str


class Joints(InstructBlipPreTrainedModel):
    """What stands between the towers, under the names that it has in a whole model."""

    def __init__(self, config: InstructBlipConfig) -> None:
        super().__init__(config)
        width = config.qformer_config.hidden_size
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, width))
        self.language_projection = nn.Linear(width, config.text_config.hidden_size)
        self.post_init()


def load_qformer(
    name: str, encoder_width: int, llm: PreTrainedConfig | None, queries: int, vocabulary: int, dtype: torch.dtype
) -> Queries:
    """The Q-Former of a checkpoint.

    Args:
        name: of a BLIP-2, an InstructBLIP or a BERT.
        encoder_width: of the image encoder; keys and values made for another width start from random weights.
        llm: configuration of the LLM; a projection to another width starts from random weights. None where none
            follows, and the projection is not used.
        queries: number of query tokens where the checkpoint has none.
        vocabulary: number of words where the checkpoint has no embeddings of them.
        dtype: of its weights.

    Raises:
        UserError: there is none.
    """
    config = read_config(name, "qformer")
    queries = config.num_query_tokens if has_qformer(config) else queries
    mapping = _FROM_WHOLE if has_qformer(config) else _FROM_BERT
    shape = qformer_config(name, config, encoder_width)
    text = text_of(name) if config.model_type == "blip-2" else None
    words = text is not None or reads_text(config)
    if not words:
        shape.vocab_size = vocabulary
    read = read_part(InstructBlipQFormerModel, name, "qformer", config=shape, dtype=dtype, key_mapping=mapping)
    fresh = read.fresh
    if text is not None:
        put_text(read.module, text, f"model.qformer={name}")
        fresh -= {key for key in fresh if is_text(f"qformer.{key}")}
    loaded = Loaded(read.module, copy_feed_forwards(read.module, fresh))
    if lost := [key for key in loaded.fresh if not _may_be_missing(key, words, config.model_type)]:
        raise UserError(f"model.qformer={name}: the checkpoint lacks {len(lost)} tensors, among them {min(lost)}")
    note = f"{config.model_type}, {shape.num_hidden_layers} layers, width {shape.hidden_size}, {queries} queries"
    joints = _load_joints(name, config, shape, llm, queries, dtype)
    folder = QFORMER_TOKENIZER if config.model_type == "instructblip" or text is not None else ""
    return Queries(loaded, joints, read_tokenizer(name, "qformer", folder) if words else None, note)


def reads_text(config: Any) -> bool:
    """Whether the checkpoint of a configuration has the text side of a Q-Former among its own weights."""
    return config.model_type != "blip-2" or bool(getattr(config.qformer_config, "use_qformer_text_input", False))


def qformer_config(name: str, config: Any, encoder_width: int) -> InstructBlipQFormerConfig:
    """The configuration of a Q-Former that `load_qformer` would load; no weight is read.

    Args:
        name: as `load_qformer` takes it.
        config: of that checkpoint.
        encoder_width: of the image encoder.

    Raises:
        UserError: the checkpoint has no Q-Former.
    """
    if not has_qformer(config) and config.model_type != "bert":
        raise UserError(
            f"model.qformer={name}: a {config.model_type}; a Q-Former starts from BLIP-2, InstructBLIP or BERT"
        )
    source = config.qformer_config if has_qformer(config) else config
    return InstructBlipQFormerConfig(
        **{key: getattr(source, key) for key in SHAPE.split()},
        cross_attention_frequency=getattr(source, "cross_attention_frequency", 2),
        encoder_hidden_size=encoder_width,
    )


def fresh_joints(config: InstructBlipConfig, dtype: torch.dtype) -> Loaded:
    """Query tokens and projection from random weights."""
    joints = Joints(config)
    nn.init.normal_(joints.query_tokens, std=0.02)
    return Loaded(joints.to(dtype), frozenset(name for name, _ in joints.named_parameters()))


def _load_joints(
    name: str,
    config: Any,
    shape: InstructBlipQFormerConfig,
    llm: PreTrainedConfig | None,
    queries: int,
    dtype: torch.dtype,
) -> Loaded:
    whole = InstructBlipConfig(qformer_config=shape, text_config=llm, num_query_tokens=queries)
    if not has_qformer(config):
        return fresh_joints(whole, dtype)
    joints = read_part(Joints, name, "qformer", config=whole, dtype=dtype)
    if "query_tokens" in joints.fresh:
        raise UserError(f"model.qformer={name}: the checkpoint has no query tokens")
    return joints


def copy_feed_forwards(qformer: nn.Module, fresh: Iterable[str]) -> frozenset[str]:
    """Let feed-forwards that the checkpoint lacks start as copies of their siblings; the names of what is left."""
    own, fresh = dict(qformer.named_parameters()), set(fresh)
    left = set()
    for name in fresh:
        sibling = _FEED_FORWARD.sub(lambda part: part[1] + ("" if part[2] else "_query"), name)
        if sibling == name or sibling in fresh:
            left.add(name)
        else:
            own[name].data.copy_(own[sibling].data)
    return frozenset(left)


def _may_be_missing(name: str, words: bool, kind: str) -> bool:
    if kind == "bert":
        return ".crossattention." in name
    return may_be_made_anew(name) or (not words and name.startswith("embeddings."))


def may_be_made_anew(name: str) -> bool:
    """Whether a parameter depends on the towers beside a Q-Former: one for other towers cannot be kept."""
    return bool(re.search(r"\.crossattention\.attention\.(key|value)\.|^language_projection\.", name))
