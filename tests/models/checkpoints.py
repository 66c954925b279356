"""Tiny random checkpoints of the families that parts of a joined model come from, as their own libraries save them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertForMaskedLM,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)

from instructkit.models.load.new_tokenizers import train_llm_tokenizer, train_qformer_tokenizer
from instructkit.models.save import save_model
from tests.tiny import LLMS, SENTENCES, tiny_model

IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
ALL_LLMS: dict[str, dict[str, Any]] = {
    **LLMS,
    "gemma2": {**LLMS["gemma"], "query_pre_attn_scalar": 8},
    "gemma3_text": {
        **LLMS["gemma"],
        "query_pre_attn_scalar": 8,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "qwen3": {**LLMS["qwen2"], "head_dim": 8},
    # Square layers: only their kind says that GPT-2 keeps matrices transposed.
    "gpt2": {"n_embd": 32, "n_inner": 32, "n_layer": 2, "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "gpt_neox": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
}
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def write_llm(folder: Path, family: str = "llama", bare: bool = False, **changes: int) -> Path:
    """An LLM; a bare one's tokenizer knows neither padding nor start nor `<image>`, as GPT's."""
    tokenizer = bare_tokenizer() if bare else train_llm_tokenizer(SENTENCES, 400)
    shape = {**ALL_LLMS[family], **changes}
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), initializer_range=0.2, **shape, **IDS)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    torch.manual_seed(3)
    auto.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def bare_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def write_vision(folder: Path, family: str) -> Path:
    """An image encoder for pictures of 16 pixels, with its preprocessor; CLIP and SigLIP with their text side."""
    torch.manual_seed(4)
    image = {**SIZES, "image_size": 16, "patch_size": 8}
    text = {**SIZES, "vocab_size": 50, "max_position_embeddings": 8}
    if family == "clip":
        model: Any = CLIPModel(CLIPConfig(vision_config=image, text_config=text, projection_dim=8))
    elif family == "siglip":
        model = SiglipModel(SiglipConfig(vision_config=image, text_config=text))
    else:
        options = {**image, "image_size": 32} if family == "dinov2" else image
        model = AutoModel.from_config(AutoConfig.for_model(family, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    facts = {"image_mean": MEAN, "image_std": STD, "do_normalize": True, "do_center_crop": True}
    facts |= {"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}}
    (folder / "preprocessor_config.json").write_text(json.dumps(facts))
    return folder


SMALL = {"image_size": 32, "num_channels": 3}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
SWIN = {"patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2}
ENCODERS: dict[str, dict[str, Any]] = {
    "clip": {},
    "siglip": {},
    "vit": {},
    "dinov2": {},
    "beit": {"drop_path_rate": 0.0, "use_relative_position_bias": True},
    "swin": {**SMALL, **SWIN, "drop_path_rate": 0.0},
    "swinv2": {**SMALL, **SWIN, "drop_path_rate": 0.0},
    "resnet": {**STAGES, "embedding_size": 8, "layer_type": "basic"},
    "regnet": {**STAGES, "embedding_size": 8, "groups_width": 4},
    "convnext": {**SMALL, **STAGES, "patch_size": 4},
    "convnextv2": {**SMALL, **STAGES, "patch_size": 4},
    "efficientnet": {
        **SMALL,
        "in_channels": [32, 16],
        "out_channels": [16, 24],
        "kernel_sizes": [3, 3],
        "strides": [1, 2],
        "num_block_repeats": [1, 1],
        "expand_ratios": [1, 2],
        "depthwise_padding": [],
        "hidden_dim": 1280,
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
    },
    "mobilenet_v2": {**SMALL, "depth_multiplier": 0.25, "finegrained_output": False},
    "mobilevit": {
        **SMALL,
        "hidden_sizes": [12, 16, 20],
        "neck_hidden_sizes": [8, 8, 8, 12, 16, 20, 24],
        "intermediate_size": 16,
        "num_attention_heads": 2,
    },
}
"""Encoders by their type in transformers, each as small as it goes."""

MAPS = ("resnet", "regnet", "convnext", "convnextv2", "efficientnet", "mobilenet_v2", "mobilevit")
"""Those that give a map of features."""

_RANDOM = ("dropout", "drop_rate", "drop_path_rate", "drop_connect_rate", "hidden_dropout_prob")


def write_encoder(folder: Path, family: str, dropout: float = 0.0) -> Path:
    """An image encoder of any family for pictures of 32 pixels or less, with statistics of its own and random noise."""
    if family in ("clip", "siglip"):
        return write_vision(folder, family)
    torch.manual_seed(4)
    if family.startswith("timm:"):
        facts = {"input_size": [3, 64, 64], "mean": MEAN, "std": STD}
        args = {"img_size": 64, "window_size": 2, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2)}
        config = AutoConfig.for_model(
            "timm_wrapper",
            architecture=family.removeprefix("timm:"),
            pretrained_cfg=facts,
            do_pooling=False,
            model_args=args if "swin" in family else {"channels": (8, 8, 8, 8), "layers": (1, 1, 1, 1)},
        )
    else:
        options = ENCODERS.get(family) or {**SIZES, "image_size": 32, "patch_size": 8}
        if family in ("vit", "dinov2", "beit", "vit_mae"):
            options = {**SIZES, "image_size": 32, "patch_size": 8, **options}
        config = AutoConfig.for_model(family, **options)
        for key in _RANDOM:
            if dropout and hasattr(config, key):
                setattr(config, key, dropout)
    model: Any = AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for name, buffer in model.named_buffers():
            if "running_var" in name:
                buffer.uniform_(0.5, 1.5)
            if "running_mean" in name:
                buffer.uniform_(-0.5, 0.0)
    model.save_pretrained(folder)
    facts = {"image_mean": MEAN, "image_std": STD, "do_normalize": True, "do_center_crop": False}
    (folder / "preprocessor_config.json").write_text(json.dumps({**facts, "size": {"height": 32, "width": 32}}))
    return folder


def write_instructblip(folder: Path, llm: str = "llama") -> Path:
    model, texts = tiny_model(llm, seed=5)
    save_model(model, texts, folder)
    return folder


def write_bert(folder: Path, prefixed: bool = True) -> Path:
    tokenizer = train_qformer_tokenizer(SENTENCES, 120)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    torch.manual_seed(6)
    model = BertForMaskedLM(config)
    (model if prefixed else model.bert).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


_SPREAD: dict[str, dict[str, float]] = {"opt": {"init_std": 0.2}, "t5": {"initializer_factor": 5.0}}
"""Weights of tiny LLMs wide enough for answers that differ from picture to picture."""


def write_blip2(folder: Path, retrieval: bool = False, llm: str = "opt", end: int = 2) -> Path:
    """A BLIP-2: the generator, whose Q-Former reads no text, or the retrieval model, whose Q-Former does.

    Args:
        folder: new.
        retrieval: which of the two.
        llm: family of the generator's LLM.
        end: token that its answers end with.
    """
    tokenizer = train_qformer_tokenizer(SENTENCES, 120) if retrieval else train_llm_tokenizer(SENTENCES, 400)
    qformer = Blip2QFormerConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        encoder_hidden_size=24,
        initializer_range=0.2,
        use_qformer_text_input=retrieval,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**{**SIZES, "image_size": 16, "patch_size": 8, "initializer_range": 0.2}),
        qformer_config=qformer,
        text_config=AutoConfig.for_model(
            llm, vocab_size=400, **LLMS[llm], **{**IDS, "eos_token_id": end}, **_SPREAD.get(llm, {})
        ),
        num_query_tokens=4,
        image_token_index=3,
        image_text_hidden_size=8,
    )
    torch.manual_seed(7)
    model = (Blip2ForImageTextRetrieval if retrieval else Blip2ForConditionalGeneration)(config)
    torch.nn.init.normal_(model.query_tokens)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
