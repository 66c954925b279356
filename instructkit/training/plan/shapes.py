"""The model of a run as shapes alone, on PyTorch's meta device, and batches of assumed lengths for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor
from transformers import InstructBlipConfig, InstructBlipQFormerConfig, PreTrainedConfig

from instructkit.config.settings import ModelConfig, RunConfig
from instructkit.errors import UserError
from instructkit.models.instruct_blip import IGNORED, InstructBlip
from instructkit.models.load.join import check_queries
from instructkit.models.load.lavis import base_of, is_lavis, read_lavis
from instructkit.models.load.llm import llm_config
from instructkit.models.load.parts import has_qformer, read_config
from instructkit.models.load.presets import PUBLISHED, preset
from instructkit.models.load.qformer import qformer_config, reads_text
from instructkit.models.load.qformer_text import text_file
from instructkit.models.load.trained import facts_of
from instructkit.models.load.vision import vision_shape
from instructkit.models.recompute import recompute_layers
from instructkit.models.resolution import check_image_size
from instructkit.models.towers import prepare_towers, set_modes


class Lengths(NamedTuple):
    """Tokens of a row's texts.

    Attributes:
        instruction: in the LLM's tokens.
        answer: in the LLM's tokens, end token included.
        qformer: of the instruction, in the Q-Former's tokens.
    """

    instruction: int = 40
    answer: int = 24
    qformer: int = 40


def model_on_shapes(config: RunConfig) -> InstructBlip:
    """The model that a run trains, in its precision, with what is trained set as in training; no weight is read.

    Raises:
        UserError: a part's configuration cannot be found, or what is trained contradicts the model.
    """
    before = torch.get_default_dtype()
    dtype = torch.bfloat16 if config.training.precision == "bf16" else torch.float32
    torch.set_default_dtype(dtype)
    try:
        shape = shape_of(config.model)
        check_queries(config.model, shape.num_query_tokens)
        if (size := config.model.image_size) is not None:
            check_image_size(size, shape.vision_config.patch_size)
            shape.vision_config.image_size = size
        with torch.device("meta"):
            model = InstructBlip(shape)
        model.config.instruction_aware = config.model.instruction_aware
        prepare_towers(model, config.towers, config.seed)
    finally:
        torch.set_default_dtype(before)
    model.to(dtype)  # adapters, which come in fp32
    model.throughput = config.throughput
    if config.training.activation_checkpointing:
        recompute_layers(model)
    set_modes(model, training=True)
    return model


def shape_of(settings: ModelConfig) -> InstructBlipConfig:
    """The configuration of a run's model, joined from parts where it is.

    Raises:
        UserError: a part's configuration cannot be found.
    """
    if is_lavis(settings.name):
        published = base_of(read_lavis(Path(settings.name)), settings.name)
        settings = msgspec.structs.replace(settings, name=published)
    base = _whole(settings)
    if not settings.joined:
        return base
    vision, foreign = base.vision_config, getattr(base, "vision_encoder", None)
    if settings.vision or settings.vision_layer is not None:
        vision, foreign = vision_shape(settings.vision or settings.name, settings.vision_layer, _read)
    text = llm_config(settings.llm) if settings.llm and settings.llm not in PUBLISHED else base.text_config
    if settings.llm in PUBLISHED:
        text = preset(settings.llm).text_config
    qformer, queries = base.qformer_config, base.num_query_tokens
    if settings.qformer:
        found = _read(settings.qformer, "qformer")
        words = qformer.vocab_size
        qformer = qformer_config(settings.qformer, found, vision.hidden_size)
        if not reads_text(found) and text_file(settings.qformer) is None:
            qformer.vocab_size = words  # such a checkpoint has no embeddings of words
        queries = found.num_query_tokens if has_qformer(found) else settings.queries or queries
    qformer = InstructBlipQFormerConfig.from_dict({**qformer.to_dict(), "encoder_hidden_size": vision.hidden_size})
    joined = InstructBlipConfig(
        vision_config=vision,
        qformer_config=qformer,
        text_config=text,
        num_query_tokens=queries,
        image_token_index=text.vocab_size,
    )
    joined.qformer_config.encoder_hidden_size = vision.hidden_size
    joined.vision_encoder = foreign
    return joined


def _whole(settings: ModelConfig) -> InstructBlipConfig:
    name = settings.name
    if name == "nano":
        return preset("nano", settings.vocabulary, settings.vocabulary, settings.queries)
    if (facts := facts_of(Path(name))) is not None:
        return shape_of(facts.model)
    config = _read(name, "name")
    if not has_qformer(config):
        raise UserError(f"model.name={name}: a {config.model_type}, no InstructBLIP or BLIP-2")
    if isinstance(config, InstructBlipConfig):
        if config.image_token_index is None:
            config.image_token_index = config.text_config.vocab_size
        return config
    return InstructBlipConfig(
        vision_config=config.vision_config,
        qformer_config=qformer_config(name, config, config.vision_config.hidden_size),
        text_config=config.text_config,
        num_query_tokens=config.num_query_tokens,
        image_token_index=config.text_config.vocab_size,
    )


def _read(name: str, part: str) -> PreTrainedConfig:
    """A checkpoint's configuration; those of the published sizes are known without one."""
    return preset(name) if name in PUBLISHED else read_config(name, part)


def rows_on_shapes(model: InstructBlip, images: int, lengths: Lengths, group: int = 1, frames: int = 1) -> Any:
    """A batch of rows of equal lengths: keyword arguments of `InstructBlip.answer_loss`.

    Args:
        model: on the meta device.
        images: groups of rows, each with an image of its own, or `frames` of a video.
        lengths: of the texts.
        group: rows about one image.
        frames: images a row.
    """
    config: Any = model.config
    rows, size = images * group, config.vision_config.image_size
    word = 2 if config.image_token_index == 1 else 1
    reads = [config.image_token_index] * config.num_query_tokens * frames + [word] * lengths.instruction
    ids = reads + [word] * lengths.answer if config.use_decoder_only_language_model else reads
    before = len(reads) if config.use_decoder_only_language_model else 0
    row = torch.arange(rows)
    inputs: dict[str, Tensor] = {
        "pixel_values": torch.empty(images * frames, 3, size, size, dtype=torch.float32, device="meta"),
        "image_index": ((row // group)[:, None] * frames + torch.arange(frames)).flatten(),
        "image_rows": row.repeat_interleave(frames),
        "qformer_input_ids": torch.ones(rows, lengths.qformer, dtype=torch.long),
        "qformer_attention_mask": torch.ones(rows, lengths.qformer, dtype=torch.long),
        "input_ids": torch.tensor([ids] * rows),
        "attention_mask": torch.ones(rows, len(ids), dtype=torch.long),
        "labels": torch.tensor([[IGNORED] * before + [word] * lengths.answer] * rows),
    }
    return inputs
