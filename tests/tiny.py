"""Tiny random models of several LLM families, with tokenisers trained on a few sentences."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, InstructBlipConfig, InstructBlipQFormerConfig, InstructBlipVisionConfig

from instructkit.config.settings import ModelConfig
from instructkit.models.batches import Captions, Limits, Texts
from instructkit.models.blip2 import Blip2Pretraining
from instructkit.models.instruct_blip import InstructBlip
from instructkit.models.load.new_tokenizers import train_llm_tokenizer, train_qformer_tokenizer
from instructkit.models.load.presets import build
from instructkit.models.load.pretraining import join_pretraining

SENTENCES = [
    "what color is the shape in the picture?",
    "Question: is there a triangle? Short answer:",
    "a red circle on a light background",
    "yes no red green blue triangle circle rectangle",
    "Describe the image briefly.",
]

LLMS: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
        "dropout": 0.0,
    },
    "gemma": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    },
    "qwen2": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "t5": {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.0,
        "decoder_start_token_id": 0,
    },
}


def tiny_config(llm: str, vocabulary: int, qformer_vocabulary: int) -> InstructBlipConfig:
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    text = AutoConfig.for_model(llm, vocab_size=vocabulary, **LLMS[llm], **ids)
    return InstructBlipConfig(
        vision_config=InstructBlipVisionConfig(
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=16,
            patch_size=8,
            initializer_range=0.1,
        ),
        qformer_config=InstructBlipQFormerConfig(
            vocab_size=qformer_vocabulary,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.1,
        ),
        text_config=text,
        num_query_tokens=4,
        image_token_index=3,
    )


def tiny_model(llm: str = "llama", seed: int = 0, limits: Limits | None = None) -> tuple[InstructBlip, Texts]:
    words = train_llm_tokenizer(SENTENCES, 400)
    qformer = train_qformer_tokenizer(SENTENCES, 120)
    config = tiny_config(llm, len(words), len(qformer))
    return build(config, seed), Texts(words, qformer, config, limits)


def tiny_first_stage(seed: int = 0) -> tuple[Blip2Pretraining, Captions]:
    """A model of BLIP-2's first stage from random weights that are large enough to tell pictures and texts apart."""
    model, captions = join_pretraining(
        ModelConfig(), torch.float32, lambda: train_qformer_tokenizer(SENTENCES, 120), seed=seed
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    return model.eval(), captions
