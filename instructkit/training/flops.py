"""Floating-point operations of a training step, counted from shapes, and how many a device can do.

Counted are the products of matrices, as everybody counts them: 2 operations a weight and token forward, 2 more where a
gradient goes on to what came before, 2 more where the weight is trained; attention with all pairs of tokens, causal or
not. A frozen image encoder has no backward pass; a frozen LLM passes its gradient on. Padding that the LLM computes
counts (`useful_token_share` says how much that is). Left out are norms, activations, softmax, embeddings, the
optimizer, padding inside attention and what activation checkpointing computes twice: some per cent of a small model,
less of a large one.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from instructkit.models.instruct_blip import IGNORED, InstructBlip
from instructkit.models.packing import can_pack, similar_rows

_CROSS = ("EncDecAttention.", "encoder_attn.")
_ASKS = (".q", ".q_proj", ".query", ".qkv")
_KEYS = (".k", ".v", ".k_proj", ".v_proj", ".key", ".value")


class LlmWork(NamedTuple):
    """What an LLM computes of a batch.

    Attributes:
        held: tokens that the rows hold: soft prompts, instructions, targets.
        read: positions of a decoder-only LLM or of an encoder, padding included.
        written: positions of an encoder-decoder's decoder.
        answers: positions that are projected onto the vocabulary.
        pairs: tokens that attend to tokens in a layer: over what is read.
        pairs_written: over what is written, the mean of a decoder's attention to itself and to what is read.
    """

    held: int
    read: int
    written: int
    answers: int
    pairs: int
    pairs_written: float


def llm_work(model: InstructBlip, inputs: dict[str, Tensor]) -> LlmWork:
    """What the LLM computes of a batch.

    Args:
        model: whose `answer_loss` reads the batch.
        inputs: of a micro-batch, on the CPU.
    """
    lengths = inputs["attention_mask"].sum(1).tolist()
    answers = (inputs["labels"] != IGNORED).sum(1).tolist()
    everywhere = not model.throughput.answers_only
    if model.config.use_decoder_only_language_model:
        rows, width = inputs["attention_mask"].shape
        held = read = sum(lengths)
        pairs = sum(length**2 for length in lengths)
        if not (model.throughput.packing and can_pack(model.language_model, max(lengths))):
            read, pairs = rows * width, rows * width**2
        return LlmWork(held, read, 0, read if everywhere else sum(answers), pairs, 0)
    both = list(zip(lengths, answers, strict=True))
    groups = similar_rows(both) if model.throughput.packing else [list(range(len(both)))]
    sizes = [(len(group), max(lengths[row] for row in group), max(answers[row] for row in group)) for group in groups]
    read, written = sum(n * length for n, length, _ in sizes), sum(n * answer for n, _, answer in sizes)
    return LlmWork(
        held=sum(lengths) + sum(answers),
        read=read,
        written=written,
        answers=written if everywhere else sum(answers),
        pairs=sum(n * length**2 for n, length, _ in sizes),
        pairs_written=sum(n * answer * (answer + length) for n, length, answer in sizes) / 2,
    )


class FlopCount:
    """Counts what forward and backward passes of a model need.

    Args:
        model: with `requires_grad` set on what is trained.
    """

    def __init__(self, model: InstructBlip) -> None:
        self._model = model
        config: Any = model.config
        self._patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2 + 1
        self._queries = config.num_query_tokens
        self._flows = _flows(model)
        self._per_token: dict[str, float] = {}
        # OPT calls its only stack a decoder.
        self._writes = ".decoder." if not config.use_decoder_only_language_model else "-"
        head = model.language_model.get_output_embeddings()
        for name, module in model.named_modules():
            size = _size(module)
            if size:
                stream = "answers" if module is head else _stream(name, self._writes)
                tower = "keys" if stream == "keys" else name.split(".")[0]
                passes = 1 + self._flows[tower] + any(weight.requires_grad for weight in module.parameters(False))
                self._per_token[stream] = self._per_token.get(stream, 0.0) + 2.0 * size * passes
        self._attention = {
            "vision": self._widths("vision_model"),
            "qformer": self._widths("qformer", ".attention.attention."),
            "cross": self._widths("qformer", ".crossattention.attention."),
            "read": self._widths("language_model", but=self._writes),
            "written": self._widths("language_model", self._writes),
        }

    def _widths(self, tower: str, part: str = "", but: str = "-") -> float:
        """Operations a pair of tokens, 4 a unit of width for the two products, thrice that where a gradient flows."""
        total = 0
        for name, module in getattr(self._model, tower).named_modules(prefix=tower):
            plain = name.removesuffix(".base_layer")
            if _size(module) and part in name and but not in name and plain.endswith(_ASKS):
                total += getattr(module, "out_features", 0) // (3 if plain.endswith(".qkv") else 1)
        return 4.0 * total * (3 if self._flows[tower] else 1)

    def count(self, inputs: dict[str, Tensor], work: LlmWork) -> float:
        """Operations of a micro-batch, forward and backward.

        Args:
            inputs: on the CPU.
            work: of the same batch.
        """
        throughput = self._model.throughput
        pairs = len(inputs["image_index"])
        images = int(inputs["image_index"].max()) + 1
        encoded = len(inputs["pixel_values"])  # fewer where features were kept
        if not throughput.share_images and "image_patches" not in inputs:
            encoded = images = pairs
        words = torch.zeros(pairs, dtype=torch.long)
        if self._model.instruction_aware:
            mask = inputs["qformer_attention_mask"][inputs["image_rows"]]
            words = mask.sum(1) if throughput.share_keys else torch.full_like(words, mask.shape[1])
        tokens = {
            "patches": encoded * self._patches,
            "keys": (images if throughput.share_keys else pairs) * self._patches,
            "queries": pairs * self._queries,
            "words": int(words.sum()),
            "both": pairs * self._queries + int(words.sum()),
            "read": work.read,
            "written": work.written,
            "answers": work.answers,
        }
        attended = {
            "vision": encoded * self._patches**2,
            "qformer": int((words + self._queries).square().sum()),
            "cross": pairs * self._queries * self._patches,
            "read": work.pairs,
            "written": work.pairs_written,
        }
        linear = sum(per_token * tokens[stream] for stream, per_token in self._per_token.items())
        return linear + sum(times * attended[part] for part, times in self._attention.items())


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


def _flows(model: InstructBlip) -> dict[str, bool]:
    """Whether a gradient goes on to what a tower's layers read."""
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    encoder = any(name.startswith("vision_model.") and "post_layernorm" not in name for name in trained)
    features = encoder or any(name.startswith("vision_model.") for name in trained)
    before = any(not name.startswith("language_model.") for name in trained)
    return {
        "vision_model": encoder,
        "keys": features,
        "qformer": before,
        "language_projection": before,
        "language_model": bool(trained),
    }


def _stream(name: str, writes: str) -> str:
    """Which tokens run through a layer; `writes` is part of the names of layers that only a decoder's tokens see."""
    tower, _, rest = name.partition(".")
    plain = rest.replace(".base_layer", "").split(".lora_")[0]
    if tower == "vision_model":
        return "patches"
    if tower == "language_projection":
        return "queries"
    if tower == "qformer":
        if ".crossattention." in plain:
            return "keys" if plain.endswith((".key", ".value")) else "queries"
        if "_query." in plain:
            return "queries"
        return "both" if ".attention." in plain else "words"
    if writes in f".{plain}" and not (any(cross in plain for cross in _CROSS) and plain.endswith(_KEYS)):
        return "written"
    return "read"


def _size(module: nn.Module) -> int:
    """Multiplications a token of a layer that multiplies by a matrix, 0 for others."""
    if isinstance(module, nn.Linear):
        return module.in_features * module.out_features
    if isinstance(module, Conv1D):
        return int(module.nf * module.nx)
    if isinstance(module, nn.Conv2d):
        return int(module.in_channels * module.out_channels * module.kernel_size[0] * module.kernel_size[1])
    return 0
