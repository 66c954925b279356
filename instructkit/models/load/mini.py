"""Parts of the mini-world's models from random weights, as checkpoints that recipes take by name.

All are small enough for one core: an LLM of 1.2M parameters, a ConvNeXt of 0.3M and a BERT that a Q-Former starts from.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    ConvNextConfig,
    ConvNextImageProcessor,
    ConvNextModel,
)

from instructkit.data.media import CLIP_MEAN, CLIP_STD
from instructkit.files import replacing
from instructkit.models.load.new_tokenizers import train_llm_tokenizer, train_qformer_tokenizer
from instructkit.models.load.parts import seeded
from instructkit.models.load.presets import nano_llm


def write_encoder(folder: Path, side: int, seed: int = 0) -> None:
    """Write an image encoder: 28 x 28 patches of width 32, then 14 x 14 of 64 and 7 x 7 of 96, at 112 pixels.

    Patches of four pixels show the patterns of things; with eight they are learned much later.

    Args:
        folder: of the checkpoint.
        side: of the pictures in pixels.
        seed: of the weights.
    """
    config = ConvNextConfig(
        patch_size=4,
        num_stages=3,
        hidden_sizes=[32, 64, 96],
        depths=[1, 2, 2],
        initializer_range=0.1,  # about 1 / sqrt(width): the usual 0.02 suits widths of about 1,000
        layer_scale_init_value=0.5,
        image_size=side,
    )
    processor = ConvNextImageProcessor(size={"height": side, "width": side}, image_mean=CLIP_MEAN, image_std=CLIP_STD)
    with seeded(seed), replacing(folder) as aside:
        ConvNextModel(config).save_pretrained(aside)
        processor.save_pretrained(aside)


def write_llm(folder: Path, texts: Iterable[str], vocabulary: int, seed: int = 0) -> None:
    """Write an LLM (`nano_llm`) with a tokeniser that is trained on texts.

    Args:
        folder: of the checkpoint.
        texts: what the LLM will read.
        vocabulary: number of tokens at most.
        seed: of the weights.
    """
    tokenizer = train_llm_tokenizer(texts, vocabulary)
    with seeded(seed), replacing(folder) as aside:
        AutoModelForCausalLM.from_config(nano_llm(len(tokenizer))).save_pretrained(aside)
        tokenizer.save_pretrained(aside)


def write_bert(folder: Path, texts: Iterable[str]) -> None:
    """Write a BERT of two layers of width 128 with a tokeniser that is trained on texts.

    Args:
        folder: of the checkpoint.
        texts: what the Q-Former will read.
    """
    tokenizer = train_qformer_tokenizer(texts, 1536)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        initializer_range=0.12,  # as in nano
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        cross_attention_frequency=1,  # in each layer, once it is a Q-Former
    )
    with seeded(0), replacing(folder) as aside:
        BertForMaskedLM(config).save_pretrained(aside)
        tokenizer.save_pretrained(aside)
