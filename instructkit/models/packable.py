"""Which LLMs compute the same with their rows packed, and why others do not; see `packing`.

A class is packed that was compared, packed and unpacked, by test: with its layers, rotary positions and options.
"""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from instructkit.models.packing import why_no_kernel

COMPARED_DECODERS = frozenset(
    [
        "apertus",
        "arcee",
        "ernie4_5",
        "gemma",
        "gemma2",
        "gemma3_text",
        "glm",
        "glm4",
        "gpt2",
        "gpt_neox",
        "helium",
        "llama",
        "mistral",
        "mixtral",
        "nemotron",
        "olmo",
        "olmo2",
        "olmoe",
        "opt",
        "phi",
        "phi3",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "seed_oss",
        "smollm3",
        "starcoder2",
    ]
)
"""Decoder-only classes (`model_type`) whose layers know nothing but softmax attention, by test.

Their rows may be packed and their candidates ranked over a shared prefix. A class that also has short convolutions, a
state, attention sinks, chunks or a mask of its own would mix the rows without a word, so every other class is padded.
"""

COMPARED_LAYERS = frozenset(["full_attention", "sliding_attention"])
"""What layers may be (`layer_types`)."""

COMPARED_ROPES = frozenset(["default", "dynamic", "linear", "llama3", "longrope", "proportional", "yarn"])
"""Kinds of rotary positions (`rope_type`). Those that depend on the longest row are packed where they do not yet."""

COMPARED_OPTIONS = frozenset(
    [
        "_remove_final_layer_norm",
        "activation_function",
        "add_cross_attention",
        "attention_bias",
        "attention_out_bias",
        "attn_logit_softcapping",
        "bos_token_id",
        "clip_qkv",
        "do_layer_norm_before",
        "enable_bias",
        "eos_token_id",
        "final_logit_softcapping",
        "head_dim",
        "hidden_act",
        "hidden_activation",
        "is_decoder",
        "layer_norm_elementwise_affine",
        "layer_types",
        "mlp_bias",
        "mlp_only_layers",
        "n_inner",
        "no_rope_layers",
        "norm_topk_prob",
        "num_key_value_heads",
        "output_router_logits",
        "pad_token_id",
        "qk_layernorm",
        "reorder_and_upcast_attn",
        "rope_parameters",
        "scale_attn_by_inverse_layer_idx",
        "scale_attn_weights",
        "sliding_window",
        "summary_activation",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
        "tie_word_embeddings",
        "use_bias",
        "use_bidirectional_attention",
        "use_cache",
        "use_parallel_residual",
        "use_sliding_window",
        "word_embed_proj_dim",
    ]
)
"""Options of these classes' configs that may have any value, by test or because nothing here reads them.

Sizes may, too: fields whose default is a number. An option that is none of these, of a later transformers say, must
have its default.
"""

_EVERY_CONFIG = frozenset(field.name for field in fields(PreTrainedConfig))


def why_not_plain(config: Any, longest: int = 0) -> str | None:
    """Why a decoder-only LLM's tokens may depend on more than those before them in their row; None if they do not.

    Args:
        config: of the LLM.
        longest: tokens of the longest row.
    """
    kind = config.model_type
    if kind not in COMPARED_DECODERS:
        return f"{kind} is none of the classes that were compared packed and unpacked"
    if getattr(config, "use_bidirectional_attention", False) or not getattr(config, "is_causal", True):
        return f"this {kind} also attends to tokens that follow"
    if others := set(getattr(config, "layer_types", None) or ()) - COMPARED_LAYERS:
        return f"{kind} with layers of {' and '.join(sorted(map(str, others)))} was not compared packed and unpacked"
    if others := {rope["rope_type"] for rope in _ropes(config)} - COMPARED_ROPES:
        return f"{kind} with {' and '.join(sorted(others))} rotary positions was not compared packed and unpacked"
    if (option := _unknown_option(config)) is not None:
        return f"{kind} with {option} was not compared packed and unpacked"
    if depends_on_longest(config, longest):
        return f"rotary positions change with the longest row, and one has {longest:,} tokens"
    return None


def depends_on_longest(config: Any, longest: int) -> bool:
    """Whether an LLM reads its rows by rotary positions that depend on the longest of them.

    Args:
        config: of the LLM.
        longest: tokens of the longest row.
    """
    limit = _fixed_rope(config)
    return limit is not None and longest > limit


def _unknown_option(config: Any) -> str | None:
    """An option of a config that is not its class's default and was not compared, as `name=value`; None without."""
    for field in fields(config) if is_dataclass(config) else ():
        if field.name in COMPARED_OPTIONS or field.name in _EVERY_CONFIG:
            continue
        default = field.default if field.default_factory is MISSING else field.default_factory()
        size = isinstance(default, int | float) and not isinstance(default, bool)
        value = getattr(config, field.name)
        if not size and value != default:
            return f"{field.name}={value}"
    return None


def _ropes(config: Any) -> list[dict[str, Any]]:
    """Settings of rotary positions: one for all layers, or one for each type of layer."""
    whole = getattr(config, "rope_parameters", None) or {}
    return [rope for rope in [whole, *whole.values()] if isinstance(rope, dict) and rope.get("rope_type")]


def _fixed_rope(config: Any) -> int | None:
    """Tokens up to which rotary frequencies are the same whatever the longest row; None for those that never change."""
    limits = []
    for rope in _ropes(config):
        if rope["rope_type"] == "dynamic":
            limits.append(config.max_position_embeddings)
        elif rope["rope_type"] == "longrope":
            limits.append(rope.get("original_max_position_embeddings") or config.max_position_embeddings)
    return min(limits, default=None)


def why_padded(llm: nn.Module, longest: int = 0) -> str | None:
    """Why a decoder-only LLM's rows cannot be packed; None if they can.

    Args:
        llm: the LLM.
        longest: tokens of the longest row.
    """
    config: Any = llm.config
    if (reason := why_not_plain(config, longest)) is not None:
        return reason
    if not getattr(llm, "_supports_attention_backend", False):
        return f"this transformers has no exchangeable attention for {config.model_type}"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return f"{config.model_type} caps its attention scores"
    return None


def can_pack(llm: nn.Module, longest: int) -> bool:
    """Whether a decoder-only LLM of transformers computes the same with its rows packed.

    Args:
        llm: the LLM.
        longest: tokens of the longest row.
    """
    return why_padded(llm, longest) is None


def packing_note(llm: nn.Module, device: torch.device) -> str | None:
    """A line for the log of a run that asks for packing, where it is not all that it could be.

    Args:
        llm: the LLM.
        device: where it will run.
    """
    config: Any = llm.config
    if getattr(config, "is_encoder_decoder", False):
        return None
    if (reason := why_padded(llm)) is not None:
        return f"packing   off, rows are padded: {reason}"
    notes = []
    if (limit := _fixed_rope(config)) is not None:
        notes.append(
            f"a batch with a row over {limit:,} tokens (rotary positions follow the longest from there) is padded"
        )
    if device.type == "cuda" and (missing := why_no_kernel(config)) is not None:
        notes.append(missing)
    return f"packing   on, but {'; '.join(notes)}" if notes else None
