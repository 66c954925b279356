"""Floating-point operations of a training step, and how many a device can do.

Counted are products of matrices, convolutions and attention, forward and backward, by the formulas of
`torch.utils.flop_counter`, 2 operations a multiplication. A small micro-batch is counted once, on shapes alone: what it
takes an image in the encoder, a position in the Q-Former and a position in the LLM is what every micro-batch takes.
Padding that the LLM computes counts (`useful_token_share` says how much that is). Left out are norms, activations,
softmax, embeddings, the optimizer and what activation checkpointing computes twice.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from peft import inject_adapter_in_model
from torch import Tensor

from instructkit.models.instruct_blip import IGNORED, InstructBlip
from instructkit.models.packable import can_pack
from instructkit.models.packing import similar_rows
from instructkit.models.towers import TOWERS
from instructkit.training.plan.record import count_on_shapes
from instructkit.training.plan.shapes import Lengths, rows_on_shapes


class LlmWork(NamedTuple):
    """What an LLM computes of a batch.

    Attributes:
        held: tokens that the rows hold: soft prompts, instructions, targets.
        read: positions of a decoder-only LLM or of an encoder, padding included.
        written: positions of an encoder-decoder's decoder.
    """

    held: int
    read: int
    written: int


def llm_work(model: InstructBlip, inputs: dict[str, Tensor]) -> LlmWork:
    """What the LLM computes of a batch.

    Args:
        model: whose `answer_loss` reads the batch.
        inputs: of a micro-batch, on the CPU.
    """
    lengths = inputs["attention_mask"].sum(1).tolist()
    if model.config.use_decoder_only_language_model:
        packed = model.throughput.packing and can_pack(model.language_model, max(lengths))
        return LlmWork(sum(lengths), sum(lengths) if packed else inputs["attention_mask"].numel(), 0)
    answers = (inputs["labels"] != IGNORED).sum(1).tolist()
    both = list(zip(lengths, answers, strict=True))
    groups = similar_rows(both) if model.throughput.packing else [list(range(len(both)))]
    return LlmWork(
        held=sum(lengths) + sum(answers),
        read=sum(len(group) * max(lengths[row] for row in group) for group in groups),
        written=sum(len(group) * max(answers[row] for row in group) for group in groups),
    )


class FlopCount:
    """Counts what forward and backward passes of a model need.

    Args:
        model: with `requires_grad` set on what is trained.
    """

    def __init__(self, model: InstructBlip) -> None:
        self._model = model
        self._image, self._keys, self._query, self._position = _each(_on_shapes(model))

    def count(self, inputs: dict[str, Tensor], work: LlmWork) -> float:
        """Operations of a micro-batch, forward and backward.

        Args:
            inputs: on the CPU.
            work: of the same batch.
        """
        encoded = len(inputs["pixel_values"])  # fewer where features were kept
        images = int(inputs["image_index"].max()) + 1
        if not self._model.throughput.share_images and "image_patches" not in inputs:
            encoded = images = len(inputs["image_index"])
        seen = encoded * self._image + images * self._keys
        return seen + _queried(self._model, inputs) * self._query + (work.read + work.written) * self._position


def _each(shapes: InstructBlip) -> tuple[float, float, float, float]:
    """Operations of an image in the encoder, of its keys, of a position in the Q-Former, and of one in the LLM."""
    inputs = rows_on_shapes(shapes, 2, Lengths(instruction=12, answer=4, qformer=12))
    inputs["pixel_values"] = inputs["pixel_values"].to(shapes.dtype)
    images = count_on_shapes(shapes, lambda: shapes.encode_images(inputs["pixel_values"]))
    with torch.no_grad():
        features = shapes.encode_images(inputs["pixel_values"])
    features.requires_grad_(any(weight.requires_grad for weight in shapes.vision_model.parameters()))
    asked = [inputs[name] for name in ("image_rows", "qformer_input_ids", "qformer_attention_mask")]
    index = inputs["image_index"]
    two = count_on_shapes(shapes, lambda: shapes.query_images(features, index, *asked))
    one = count_on_shapes(shapes, lambda: shapes.query_images(features[:1], torch.zeros_like(index), *asked))
    keys = two - one  # 0 where rows do not share them
    size = (len(inputs["image_index"]), shapes.config.num_query_tokens, shapes.hidden_size)
    soft = features.new_empty(size).requires_grad_(features.requires_grad or shapes.query_tokens.requires_grad)

    def answered() -> Tensor:
        told = shapes.predict(inputs["input_ids"], inputs["attention_mask"], inputs["labels"], soft)
        return torch.stack([each.logits.sum() for each in told]).sum()

    positions = count_on_shapes(shapes, answered)
    work = llm_work(shapes, inputs)
    return (
        images / len(inputs["pixel_values"]),
        keys,
        (one - keys) / _queried(shapes, inputs),
        positions / (work.read + work.written),
    )


def _queried(model: InstructBlip, inputs: dict[str, Tensor]) -> int:
    """Positions that the Q-Former computes: its queries, and the words beside them."""
    words = 0
    if model.instruction_aware:
        mask = inputs["qformer_attention_mask"][inputs["image_rows"]]
        words = int(mask.sum()) if model.throughput.share_keys else mask.numel()
    return len(inputs["image_index"]) * int(model.config.num_query_tokens) + words


def _on_shapes(model: InstructBlip) -> InstructBlip:
    """The same model without data, on the meta device."""
    with torch.device("meta"):
        shapes = InstructBlip(model.config)
        for tower in TOWERS:
            for lora in getattr(getattr(model, tower), "peft_config", {}).values():
                inject_adapter_in_model(lora, getattr(shapes, tower))
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    for name, weight in shapes.named_parameters():
        weight.requires_grad_(name in trained)
    shapes.throughput = model.throughput
    return shapes.bfloat16().eval()  # a mixture of experts multiplies in nothing wider


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large product of matrices here and now, the best of some."""
    width = 1024 if device.type == "cpu" else 8192
    left = torch.full((width, width), 0.5, device=device, dtype=dtype)
    fastest = float("inf")
    for _ in range(4):
        _wait(device)
        began = time.perf_counter()
        left @ left
        _wait(device)
        fastest = min(fastest, time.perf_counter() - began)
    return 2.0 * width**3 / fastest


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
