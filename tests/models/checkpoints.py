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

from instructkit.models.saving import save_model
from instructkit.models.tokenizers import train_llm_tokenizer, train_qformer_tokenizer
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


def write_blip2(folder: Path, retrieval: bool = False) -> Path:
    """A BLIP-2: the generator, whose Q-Former reads no text, or the retrieval model, whose Q-Former does."""
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
        text_config=AutoConfig.for_model("opt", vocab_size=400, **LLMS["opt"], **IDS),
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
