"""What a training step needs on each rank: weights, gradients, the optimizer's state and what the step keeps alive.

`ranks_memory` adds to a step's record (`record.py`) what DeepSpeed keeps, by ZeRO stage (arXiv 1910.02054), as its
source allocates it.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from torch import Tensor, nn

from instructkit.config.settings import TrainingConfig
from instructkit.models.instruct_blip import InstructBlip
from instructkit.training.optimizers import parameter_groups
from instructkit.training.plan.record import Moment, StepRecord

REDUCE_AT_ONCE = 500_000_000
"""Numbers that DeepSpeed reduces at once where no ZeRO stage has a bucket (`buffered_allreduce_fallback`)."""


class Weights(NamedTuple):
    """What a model's weights take; numbers are parameters, not bytes.

    Attributes:
        trained: parameters that are trained.
        total: parameters in all.
        frozen_bytes: of what is frozen, buffers included.
        largest: parameters of the largest trained tensor.
        bytes_each: of one trained parameter in the model.
        small: parameters in tensors of at most ZeRO 3's persistence threshold, which every rank keeps whole.
        moments: numbers that the optimizer keeps where nothing is sharded: AdamW two a parameter, Muon one of a matrix.
        backward: parameters that a backward pass reads, those of towers that a gradient passes through.
        stacked: parameters of all matrices of one shape that Muon orthogonalizes together, at most.
    """

    trained: int
    total: int
    frozen_bytes: int
    largest: int
    bytes_each: int
    small: int
    moments: int
    backward: int
    stacked: int


class RankMemory(NamedTuple):
    """Bytes of a rank at its peak, part by part.

    Attributes:
        weights: the model's own; under ZeRO 3 this rank's share, what is kept whole and what is gathered.
        gradients: alive at the peak, sharded copies included.
        optimizer: AdamW's moments and the fp32 copy that it steps on.
        activations: see `Moment`.
        logits: see `Moment`.
        buckets: DeepSpeed's buffers, and what its step needs in passing.
        host: on the CPU's side, by offloading.
        peak: when it is: in the "backward" pass (or forward), or in the "update" of the weights.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    buckets: int
    host: int
    peak: str

    @property
    def total(self) -> int:
        """Of the device."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits + self.buckets


def weights_of(
    model: InstructBlip, config: TrainingConfig, zero: DeepSpeedZeroConfig, llm_bits: int | None = None
) -> Weights:
    """Count a model's weights.

    Args:
        model: on any device, in the precision of the run.
        config: says the optimizer.
        zero: DeepSpeed's settings.
        llm_bits: of the LLM's linear layers, its output head excepted.
    """
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    everything = list(model.parameters())
    frozen = sum(weight.numel() * weight.element_size() for weight in everything if not weight.requires_grad)
    frozen += sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    if llm_bits is not None:
        frozen -= sum(
            round(weight.numel() * (weight.element_size() - quantised_bytes(llm_bits)))
            for weight in quantised_weights(model)
        )
    stacks: Counter[torch.Size] = Counter()
    for group in parameter_groups(model, config) if trained else []:
        if group.get("orthogonal"):
            for matrix in group["params"]:
                stacks[matrix.shape] += matrix.numel()
    return Weights(
        moments=2 * sum(weight.numel() for weight in trained) - sum(stacks.values()),
        backward=sum(weight.numel() for weight in _passed(model)),
        stacked=max(stacks.values(), default=0),
        trained=sum(weight.numel() for weight in trained),
        total=sum(weight.numel() for weight in everything),
        frozen_bytes=frozen,
        largest=max((weight.numel() for weight in trained), default=0),
        bytes_each=everything[0].element_size() if not trained else trained[0].element_size(),
        small=sum(w.numel() for w in everything if w.numel() <= int(zero.param_persistence_threshold)),
    )


def _passed(model: InstructBlip) -> list[nn.Parameter]:
    """Weights that a gradient passes: it stops before an image encoder of which only the last norm is trained."""
    encoder = any(
        weight.requires_grad and not name.startswith("post_layernorm.")
        for name, weight in model.vision_model.named_parameters()
    )
    return [weight for name, weight in model.named_parameters() if encoder or not name.startswith("vision_model.")]


def quantised_weights(model: InstructBlip) -> list[Tensor]:
    """The weights that bitsandbytes quantises: of the LLM's linear layers, its output head excepted."""
    head = model.language_model.get_output_embeddings()
    return [
        module.weight
        for name, module in model.language_model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and ".lora_" not in name
    ]


def quantised_bytes(bits: int) -> float:
    """Bytes a weight: NF4 with scales of 64 weights quantised in turn (arXiv 2305.14314, section 3); LLM.int8."""
    return 0.5 + 1 / 64 + 4 / (64 * 256) if bits == 4 else 1.0


def ranks_memory(
    record: StepRecord, weights: Weights, config: TrainingConfig, zero: DeepSpeedZeroConfig, ranks: int, device: str
) -> RankMemory:
    """The memory of one rank at the peak of a step.

    Args:
        record: of the rank's micro-batch.
        weights: of the model.
        config: says ZeRO stage, offload, precision and accumulation.
        zero: DeepSpeed's settings, for bucket sizes and thresholds.
        ranks: number of ranks.
        device: "cuda" or "cpu", whose AdamW works otherwise.
    """
    if config.zero_stage == 3:
        return _zero3(record, weights, config, zero, ranks, device)
    if config.zero_stage == 0:
        return _zero0(record, weights, config, device)
    return _zero12(record, weights, config, zero, ranks, device)


def _zero0(record: StepRecord, weights: Weights, config: TrainingConfig, device: str) -> RankMemory:
    own = weights.trained * weights.bytes_each + weights.frozen_bytes
    low = weights.bytes_each < 4
    state = weights.trained * 4 * 3 if low else weights.moments * 4
    moment = _peak(record, 1.0, config.accumulation)
    # The step: gradients are reduced as one vector; in bf16 they become fp32 for AdamW, which takes tensor by tensor.
    reduced = min(record.gradient_bytes, REDUCE_AT_ONCE * weights.bytes_each)
    passing = _apart(weights, device) + (weights.trained * 4 if low else 0)
    step = Moment(0, 0, record.gradient_bytes)
    return _larger(
        RankMemory(own, moment.gradients, state, moment.activations, moment.logits, 0, 0, "backward"),
        RankMemory(own, step.gradients, state, 0, 0, max(reduced, passing), 0, "update"),
    )


def _zero12(
    record: StepRecord, weights: Weights, config: TrainingConfig, zero: DeepSpeedZeroConfig, ranks: int, device: str
) -> RankMemory:
    own = weights.trained * weights.bytes_each + weights.frozen_bytes
    share = -(-weights.trained // ranks)
    offloaded = config.offload != "none"
    bucket = _bucket(zero, weights)
    if offloaded:  # fp32 copy, moments and gradients of the share, and what carries them over
        moment = _peak(record, 0.0, config.accumulation)
        host = share * (4 * 4 + weights.bytes_each) + weights.largest * weights.bytes_each
        carried = bucket + weights.largest * weights.bytes_each
        return RankMemory(own, 0, 0, moment.activations, moment.logits, carried, host, "backward")
    state = share * 4 * 3
    kept = 1.0 if config.zero_stage == 1 else 1 / ranks
    moment = _peak(record, kept, config.accumulation)
    gradients = round(record.gradient_bytes * kept)
    return _larger(
        RankMemory(own, moment.gradients, state, moment.activations, moment.logits, bucket, 0, "backward"),
        RankMemory(own, gradients, state, 0, 0, share * 4 + _adamw(share, device), 0, "update"),
    )


def _zero3(
    record: StepRecord, weights: Weights, config: TrainingConfig, zero: DeepSpeedZeroConfig, ranks: int, device: str
) -> RankMemory:
    each = weights.bytes_each
    share = -(-weights.trained // ranks)
    whole = weights.trained * each + weights.frozen_bytes
    small = weights.small * each
    live = int(zero.max_live_parameters) + int(zero.prefetch_bucket_size)
    gathered = min(max(whole - small, 0), live * each)
    sharded = 0 if config.offload == "parameters" else whole // ranks
    own = sharded + small + gathered
    offloaded = config.offload != "none"
    kept = share * each  # the flat buffer that gradients are added up in
    # What is fetched ahead lies in one vector before it is cut into weights.
    fetched = min(gathered, int(zero.prefetch_bucket_size) * each)
    host = share * (4 * 4) + kept if offloaded else 0
    host += whole // ranks if config.offload == "parameters" else 0
    moment = _peak(record, 0.0, config.accumulation)
    bucket = _bucket(zero, weights) + fetched
    state = 0 if offloaded else share * 4 * 3
    flat = 0 if offloaded else kept
    during = RankMemory(own, flat, state, moment.activations, moment.logits, bucket, host, "backward")
    if offloaded:
        return during
    return _larger(
        during,
        RankMemory(own, flat, state, 0, 0, bucket + share * 4 + _adamw(share, device), host, "update"),
    )


def _bucket(zero: DeepSpeedZeroConfig, weights: Weights) -> int:
    """DeepSpeed's buffers for gradients on their way: one, or two where reducing overlaps with the backward pass."""
    buffers = 2 if zero.overlap_comm and int(zero.stage) < 3 else 1
    return int(zero.reduce_bucket_size) * weights.bytes_each * buffers


def _adamw(numbers: int, device: str) -> int:
    """What AdamW needs in passing for one vector: the root of the second moment, on the CPU that and its quotient."""
    return numbers * 4 * (1 if device == "cuda" else 2)


def _apart(weights: Weights, device: str) -> int:
    """Likewise where parameters are apart: AdamW's on a GPU all at once, on the CPU one by one; Muon's stacks."""
    adamw = _adamw(weights.moments - weights.trained if device == "cuda" else weights.largest, device)
    return max(adamw, 4 * 4 * weights.stacked)  # matrices, their scaled copy, products


def _peak(record: StepRecord, kept: float, accumulation: int) -> Moment:
    """The moment of most bytes where so large a share of the gradients stays on the rank.

    With several micro-batches the gradients of those before are there from the start.
    """
    gradients = kept * record.moments[:, 2]
    if accumulation > 1:
        gradients = np.maximum(gradients, kept * record.gradient_bytes)
    top = int(np.argmax(record.moments[:, 0] + record.moments[:, 1] + gradients))
    return Moment(int(record.moments[top, 0]), int(record.moments[top, 1]), round(float(gradients[top])))


def _larger(first: RankMemory, second: RankMemory) -> RankMemory:
    return max(first, second, key=lambda memory: memory.total)
