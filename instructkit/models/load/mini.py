"""Parts of the mini-world's models from random weights, as checkpoints that recipes take by name.

Both are small enough for one core: a ConvNeXt of 0.3M parameters and a BERT that a Q-Former starts from.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from transformers import BertConfig, BertForMaskedLM, ConvNextConfig, ConvNextImageProcessor, ConvNextModel

from instructkit.data.media import CLIP_MEAN, CLIP_STD
from instructkit.models.load.new_tokenizers import train_qformer_tokenizer
from instructkit.models.load.parts import seeded


def write_encoder(folder: Path, side: int, seed: int = 0) -> None:
    """Write an image encoder: 14 x 14 patches of width 48, then 7 x 7 of width 96, for pictures of 112 pixels.

    Args:
        folder: of the checkpoint.
        side: of the pictures in pixels.
        seed: of the weights.
    """
    config = ConvNextConfig(
        patch_size=8,
        num_stages=2,
        hidden_sizes=[48, 96],
        depths=[2, 3],
        initializer_range=0.1,  # about 1 / sqrt(width): the usual 0.02 suits widths of about 1,000
        layer_scale_init_value=0.5,
        image_size=side,
    )
    with seeded(seed):
        ConvNextModel(config).save_pretrained(folder)
    processor = ConvNextImageProcessor(size={"height": side, "width": side}, image_mean=CLIP_MEAN, image_std=CLIP_STD)
    processor.save_pretrained(folder)


def write_bert(folder: Path, texts: Iterable[str], layers: int = 2, seed: int = 0) -> None:
    """Write a BERT of width 128 with a tokeniser that is trained on texts.

    Args:
        folder: of the checkpoint.
        texts: what the Q-Former will read.
        layers: of the transformer; each gets cross-attention when it becomes a Q-Former.
        seed: of the weights.
    """
    tokenizer = train_qformer_tokenizer(texts, 1536)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=128,
        initializer_range=0.12,  # as in nano
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        cross_attention_frequency=1,
    )
    with seeded(seed):
        BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
