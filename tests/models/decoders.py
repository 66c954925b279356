"""Every causal class of transformers as a tiny random model, or why there is none."""

from copy import deepcopy
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

TOKENS = 41
"""Size of every vocabulary."""

SIZES: dict[str, Any] = {
    "attention_chunk_size": 8,
    "audio_vocab_size": TOKENS,
    "bos_token_id": 2,
    "d_model": 32,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 24,
    "decoder_layers": 2,
    "depth": 2,
    "embedding_size": 32,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "encoder_layers": 2,
    "eos_token_id": 1,
    "ffn_dim": 24,
    "ffn_hidden_size": 24,
    "head_dim": 8,
    "hidden_size": 32,
    "image_size": 16,
    "intermediate_size": 24,
    "kv_lora_rank": 8,
    "linear_head_dim": 8,
    "linear_key_head_dim": 8,
    "linear_num_heads": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 4,
    "mamba_n_heads": 4,
    "max_position_embeddings": 128,
    "max_seq_len": 128,
    "moe_intermediate_size": 24,
    "n_embd": 32,
    "n_group": 1,
    "n_head": 4,
    "n_heads": 4,
    "n_inner": 24,
    "n_layer": 2,
    "n_layers": 2,
    "n_positions": 128,
    "n_routed_experts": 4,
    "num_attention_heads": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "num_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "num_layers": 2,
    "num_local_experts": 4,
    "pad_token_id": 0,
    "patch_size": 8,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "rotary_dim": 8,
    "shared_expert_intermediate_size": 24,
    "sliding_window": 16,
    "state_size": 4,
    "topk_group": 1,
    "v_head_dim": 8,
    "vocab_size": TOKENS,
    "vocab_size_per_layer_input": TOKENS,
    "word_embed_proj_dim": 32,
}
"""What configs call their sizes; each takes those that it knows."""

_PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_LATENT = {"num_key_value_heads": 4, "head_dim": None}
_PLACEHOLDERS = {"image_token_id": 3, "video_token_id": 4, "audio_token_id": 5}
_MIXED = {"layer_types": ["sliding_attention", "full_attention"]}
_SMALL_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "head_dim": 12}
_SMALL_HEADS |= {"qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
_INDEXED = {"num_key_value_heads": 4} | {f"swa_{name}": value for name, value in _SMALL_HEADS.items()}
_INDEXER = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8}
_INDEXER |= {"indexer_compress_ratio": 2}
_HYBRID = {"num_hidden_layers": 4, "layer_types": ["mamba", "hybrid", "mamba", "hybrid"]}
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ["axk1", "axk2", "bailing_hybrid", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite"], _LATENT
    ),
    **dict.fromkeys(["glm_moe_dsa", "kimi_linear", "minicpm3", "sarvam_mla", "youtu"], _LATENT),
    "cohere_compass_text": _MIXED | {"rope_parameters": dict.fromkeys(_MIXED["layer_types"], _PLAIN_ROPE)},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_v4": {"mlp_layer_types": ["moe", "moe"]},
    "dots1": {"n_shared_experts": 1},
    "dots3_note": {
        "text_config": _INDEXED,
        "vision_config": {"num_hidden_layers": None, "adapter_in_dim": 32, "adapter_out_dim": 32},
        "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
    },
    "dots3_note_text": _INDEXED,
    "blt": {"encoder_hash_byte_group_vocab": TOKENS},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": _MIXED | {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 4},
    "gemma4": _PLACEHOLDERS | {"text_config": {"hidden_size_per_layer_input": 0}},
    "gemma4_text": {"hidden_size_per_layer_input": 0},
    "gemma4_unified": _PLACEHOLDERS,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 16},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"num_key_value_heads": 4, "head_dim": 4},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "reformer": {"is_decoder": True, "axial_pos_embds": False, "attn_layers": ["local", "local"]},
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
    "recurrent_gemma": {"num_hidden_layers": 3, "layer_types": None},
    "roc_bert": {"pronunciation_vocab_size": TOKENS, "shape_vocab_size": TOKENS},
    "xmod": {"default_language": "en_XX"},
    "zamba": _HYBRID,
    "zamba2": _HYBRID | {"hybrid_layer_ids": [1, 3]},
    "zaya": {"num_experts_per_tok": 1},
}
"""What a class needs besides; None takes a size away."""

NOT_ALONE = {
    "blt": ("input_ids is required", "cuts bytes into patches, for which it needs the tokens' numbers"),
    "cpmant": ("'NoneType' object", "takes the tokens' numbers only"),
    "gemma3n": ("timm", "has an image encoder of timm, which is no dependency"),
    "gemma4_assistant": (
        "hidden_size_per_layer_input must be 0",
        "a draft model, which reads the keys and values of another model",
    ),
    "gemma4_unified_assistant": ("shared_kv_states", "a draft model, which reads the keys and values of another model"),
    "musicgen": ("'MusicgenConfig' object", "predicts several books of sound codes, not words"),
    "musicgen_melody": ("'MusicgenMelodyConfig' object", "predicts several books of sound codes, not words"),
    "reformer": ("make sure to use `model.train()`", "gives no gradients in evaluation mode, in which a frozen LLM is"),
}
"""Classes that cannot read the embeddings of a text alone: what the error says, and why. None can be the LLM here."""

UNSTEADY = {"dory"}
"""Classes whose float32 roundings grow beyond 1e-5 with weights as large as these: compared in float64."""

SURVEYED = "5.24."
"""The transformers whose classes these are; another has classes that are not known here."""


def tiny(kind: str, attn_implementation: str | None = None, **options: Any) -> PreTrainedModel:
    """A random LLM of this class whose weights are all of order 0.3, so that a wrong position or mask shows.

    Args:
        kind: the `model_type`.
        attn_implementation: the kernel; None for the class's own choice.
        options: of its config.
    """
    # Some classes write into the options that they are given.
    config = _config(CONFIG_MAPPING[kind], deepcopy(OWN.get(kind, {}) | options))
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def _config(config_class: type[PreTrainedConfig], options: dict[str, Any]) -> PreTrainedConfig:
    known = {*config_class.__dataclass_fields__, *config_class.attribute_map}
    sizes = {name: value for name, value in SIZES.items() if name in known}
    parts = {name: _config(part, options.get(name, {})).to_dict() for name, part in _parts(config_class).items()}
    settings = sizes | _layers(config_class, known) | options | parts
    return config_class(**{name: value for name, value in settings.items() if value is not None})


def _layers(config_class: type[PreTrainedConfig], known: set[str]) -> dict[str, Any]:
    """One layer of each kind, where a class has several kinds and takes a list of them."""
    kinds = list(dict.fromkeys(getattr(config_class(), "layer_types", None) or ())) if "layer_types" in known else []
    return {"layer_types": kinds, "num_hidden_layers": len(kinds)} if len(kinds) > 1 else {}


def _parts(config_class: type[PreTrainedConfig]) -> dict[str, type[PreTrainedConfig]]:
    """Classes of the configs inside a config, as its defaults have them."""
    parts = dict(config_class.sub_configs or {})
    if AutoConfig in parts.values():
        whole = config_class()
        parts = {name: type(getattr(whole, name)) for name in parts if getattr(whole, name, None) is not None}
    return parts
