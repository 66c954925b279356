"""Models by name: `nano`, trained from scratch, `mini`, which comes with this package, and the four published sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, InstructBlipConfig, InstructBlipQFormerConfig, InstructBlipVisionConfig

from instructkit.errors import UserError
from instructkit.models.instruct_blip import InstructBlip

PUBLISHED = {
    "flan-t5-xl": "Salesforce/instructblip-flan-t5-xl",
    "flan-t5-xxl": "Salesforce/instructblip-flan-t5-xxl",
    "vicuna-7b": "Salesforce/instructblip-vicuna-7b",
    "vicuna-13b": "Salesforce/instructblip-vicuna-13b",
}
"""Published checkpoints on the Hugging Face hub."""

SHIPPED = {"mini": str(Path(__file__).parents[1] / "mini")}
"""Models with their weights in this package: the mini-world's BLIP-2 (`recipes/pretrain_mini.py`)."""

NEAR = 10
"""Tokens that a near-sighted layer of `nano_llm` sees: a thing with all that a description tells of it."""

_T5 = {"model_type": "t5", "is_encoder_decoder": True, "tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"}
_T5 |= {"dense_act_fn": "gelu", "d_kv": 64, "vocab_size": 32_128, "decoder_start_token_id": 0, "num_layers": 24}
_VICUNA = {"model_type": "llama", "vocab_size": 32_001, "rms_norm_eps": 1e-6, "pad_token_id": 32_000}
_LLMS: dict[str, dict[str, Any]] = {
    "flan-t5-xl": {**_T5, "d_model": 2048, "d_ff": 5120, "num_heads": 32},
    "flan-t5-xxl": {**_T5, "d_model": 4096, "d_ff": 10_240, "num_heads": 64},
    "vicuna-7b": {
        **_VICUNA,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "vicuna-13b": {
        **_VICUNA,
        "hidden_size": 5120,
        "intermediate_size": 13_824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
}

NAMES = ("nano", *PUBLISHED)


def preset(
    name: str, vocabulary: int | None = None, qformer_vocabulary: int | None = None, queries: int | None = None
) -> InstructBlipConfig:
    """The configuration of a preset.

    Args:
        name: one of `NAMES`.
        vocabulary: number of LLM tokens, for `nano`; the published sizes have their own.
        qformer_vocabulary: number of Q-Former tokens, for `nano`.
        queries: number of query tokens, for `nano`; 8 if None.

    Raises:
        UserError: no such preset.
    """
    if name == "nano":
        return _nano(vocabulary or 512, qformer_vocabulary or 512, queries or 8)
    if name not in _LLMS:
        raise UserError(f"no preset is called {name!r}; there are {', '.join(NAMES)}")
    llm = dict(_LLMS[name])
    vision = InstructBlipVisionConfig(layer_norm_eps=1e-6)
    config = InstructBlipConfig(
        vision_config=vision,
        qformer_config=InstructBlipQFormerConfig(vocab_size=30_523),
        text_config=AutoConfig.for_model(llm.pop("model_type"), **llm),
        num_query_tokens=32,
        image_token_index=llm["vocab_size"],
    )
    config.instruction_aware = True
    return config


def build(config: InstructBlipConfig, seed: int = 0) -> InstructBlip:
    """A model with random weights; the same seed gives the same weights.

    Query tokens are drawn at random: transformers starts them at zero, from where training without a checkpoint could
    never tell them apart.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = InstructBlip(config)
        torch.nn.init.normal_(model.query_tokens, std=0.02)
    return model


def nano_llm(vocabulary: int) -> Any:
    """The configuration of an LLM that learns a small language from text: 1.1M parameters beside its embeddings.

    Its first and third layer see the last `NEAR` tokens alone, so what is said of one thing is soon tied together. With
    full attention everywhere so small an LLM learns for long what things there are, and not which is which. It reads
    and tells tokens by different embeddings: by the same ones words that come as often, "yes" and "no", draw together.

    Args:
        vocabulary: number of tokens.
    """
    width = 128
    layers = [*("sliding_attention", "full_attention") * 2, *["full_attention"] * 2]
    return AutoConfig.for_model(
        "smollm3",
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=len(layers),
        layer_types=layers,
        sliding_window=NEAR,
        use_sliding_window=True,
        no_rope_layers=[1] * len(layers),  # 1: with rotary positions
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        num_attention_heads=4,
        num_key_value_heads=4,
        attention_bias=True,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=0.08,  # about 1 / sqrt(width), as in nano
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


def _nano(vocabulary: int, qformer_vocabulary: int, queries: int) -> InstructBlipConfig:
    """Some 2M parameters over pictures of 64 x 64, small enough to be trained from scratch on two CPU cores."""
    width = 128
    # The usual 0.02 suits widths of about 1,000; at 128 every block would whisper, and what the image says would drown
    # on its way through three towers.
    spread = 0.12
    config = InstructBlipConfig(
        vision_config=InstructBlipVisionConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=64,
            patch_size=8,
            initializer_range=spread,
        ),
        qformer_config=InstructBlipQFormerConfig(
            vocab_size=qformer_vocabulary,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            cross_attention_frequency=1,
            initializer_range=spread,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        text_config=AutoConfig.for_model(
            "llama",
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=512,
            tie_word_embeddings=False,
            initializer_range=spread,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        ),
        num_query_tokens=queries,
        image_token_index=3,
        initializer_range=spread,
    )
    config.instruction_aware = True
    return config
