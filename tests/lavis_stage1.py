"""LAVIS's stage-1 model with tiny recorded weights, and what it made of recorded inputs.

The files in `golden/lavis` were made by LAVIS's own code (commit 506965b, BSD-3-Clause) from random weights, on the CPU
in float32, without dropout. They hold no pictures.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Blip2Config, Blip2QFormerConfig, Blip2VisionConfig

from instructkit.models.blip2 import Blip2Pretraining, Candidates, Embedded

FOLDER = Path(__file__).parent / "golden" / "lavis"
NAMES = {
    "Qformer.bert.embeddings.LayerNorm.": "qformer.layernorm.",
    "Qformer.bert.embeddings.": "embeddings.",
    "Qformer.bert.encoder.": "qformer.encoder.",
    "Qformer.cls.predictions.bias": "itg_head.bias",
    "Qformer.cls.predictions.transform.": "itg_head.transform.",
    "ln_vision.": "vision_model.post_layernorm.",
    "vision_proj.": "vision_projection.",
    "text_proj.": "text_projection.",
    "temp": "temperature",
}


def ours(name: str) -> str | None:
    """A parameter of LAVIS under its name here; None for what has no place of its own."""
    if name.endswith("position_ids") or ".predictions.decoder." in name:
        return None
    for theirs, mine in NAMES.items():
        if name.startswith(theirs):
            name = mine + name.removeprefix(theirs)
            break
    return name.replace("attention.self.", "attention.attention.")


def recorded(name: str) -> dict[str, Tensor]:
    return load_file(FOLDER / f"{name}.safetensors")


def model() -> Blip2Pretraining:
    """The recorded model; its image encoder is none, since its outputs were recorded (`inputs`)."""
    facts: dict[str, Any] = json.loads((FOLDER / "config.json").read_text())
    size = facts["qformer"]
    qformer = Blip2QFormerConfig(
        **{key: size[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")},
        vocab_size=size["vocab_size"],
        max_position_embeddings=size["max_position_embeddings"],
        cross_attention_frequency=size["cross_attention_freq"],
        layer_norm_eps=size["layer_norm_eps"],
        hidden_act=size["hidden_act"],
        use_qformer_text_input=True,
    )
    vision = Blip2VisionConfig(
        hidden_size=size["encoder_width"], intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8
    )
    config = Blip2Config(
        vision_config=vision,
        qformer_config=qformer,
        num_query_tokens=size["query_length"],
        image_text_hidden_size=facts["stage1"]["embed_dim"],
    )
    config.dec_token_id = facts["bert_token_ids"]["dec_bos"]
    config.post_layernorm_eps = size["ln_vision_eps"]
    made = Blip2Pretraining(config).eval()
    state = {**recorded("qformer_weights"), **recorded("stage1_heads")}
    named = {mine: tensor for name, tensor in state.items() if (mine := ours(name)) is not None}
    named["temperature"] = named["temperature"].reshape(1)
    found = made.load_state_dict(named, strict=False)
    assert not found.unexpected_keys
    assert all(name.startswith("vision_model.") for name in found.missing_keys), found.missing_keys
    return made


def inputs(fixture: dict[str, Tensor], rows: slice = slice(None)) -> dict[str, Tensor]:
    """A recorded batch as `Blip2Pretraining.pretrain` reads it: what the encoder gave stands for kept features."""
    image = fixture["image"][rows]
    return {
        "pixel_values": torch.empty(0, 3, 8, 8),
        "image_patches": image,
        "image_order": torch.arange(len(image)),
        "input_ids": fixture["input_ids"][rows],
        "attention_mask": fixture["attention_mask"][rows],
    }


def recorded_candidates(fixture: dict[str, Tensor]) -> Callable[[Embedded], Candidates]:
    """The rows that LAVIS's ITM judged, with the negatives that it drew."""
    own = torch.arange(len(fixture["input_ids"]))
    image = torch.cat([own, fixture["neg_image_idx"], own])
    text = torch.cat([own, own, fixture["neg_text_idx"]])
    rows = Candidates(None, image, fixture["input_ids"][text], fixture["attention_mask"][text])
    return lambda embedded: rows


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: weight.grad for name, weight in module.named_parameters() if weight.grad is not None}
