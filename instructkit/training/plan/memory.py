"""What a training step allocates and computes, found by running it on shapes alone.

`record_step` runs forward and backward pass of the real model on PyTorch's meta device, where tensors have a shape and
no data, and keeps account of every storage that is alive: what autograd saves, what a layer needs in passing, what
gradients come to. Lengths and masks decide what a model computes, so whole numbers stay real, on the CPU.
`ranks_memory` adds what DeepSpeed keeps on each rank, by ZeRO stage (arXiv 1910.02054), as its source allocates it.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from instructkit.config.settings import TrainingConfig
from instructkit.models.instruct_blip import InstructBlip
from instructkit.training.optimizers import parameter_groups

_aten = torch.ops.aten
_INDEXING = (_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_, _aten._unsafe_index)
_FLASH, _FLASH_BACK = (
    _aten._scaled_dot_product_flash_attention_for_cpu,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward,
)
REDUCE_AT_ONCE = 500_000_000
"""Numbers that DeepSpeed reduces at once where no ZeRO stage has a bucket (`buffered_allreduce_fallback`)."""


class Moment(NamedTuple):
    """Bytes that are alive at a moment of a step, beside the model's weights.

    Attributes:
        activations: outputs of layers, what autograd saved of them, and the batch itself.
        logits: tensors over the whole vocabulary: logits, their log-probabilities and gradients.
        gradients: of trained weights, as far as the backward pass has come.
    """

    activations: int
    logits: int
    gradients: int


class StepRecord(NamedTuple):
    """A forward and a backward pass of one micro-batch.

    Attributes:
        moments: of both passes, in order, each as `Moment`: `[moments, 3]`, bytes.
        forward_flops: operations of the forward pass, products of matrices and attention alone.
        backward_flops: of the backward pass, with what activation checkpointing computes again.
        gradient_bytes: of all trained weights.
    """

    moments: np.ndarray
    forward_flops: int
    backward_flops: int
    gradient_bytes: int


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


def record_step(model: InstructBlip, inputs: dict[str, Tensor], device: str = "cuda") -> StepRecord:
    """Run a micro-batch through a model on the meta device, forward and backward.

    Args:
        model: on the meta device, with `requires_grad` and modes as in training.
        inputs: of `InstructBlip.answer_loss`; `pixel_values` on the meta device, whole numbers on the CPU.
        device: that is planned for; attention with dropout is fused on "cuda" alone.
    """
    recorder = _Recorder(model, inputs)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    hooks = [weight.register_post_accumulate_grad_hook(recorder.own_gradient) for weight in trained]
    try:
        with recorder, _fused_attention(device):
            total = model.answer_loss(**inputs).total
            forward = recorder.flops
            if trained:
                total.backward()
    finally:
        for hook in hooks:
            hook.remove()
        for weight in trained:
            weight.grad = None
    size = sum(weight.numel() * weight.element_size() for weight in trained)
    return StepRecord(np.array(recorder.moments), forward, recorder.flops - forward, size)


def at_size(small: StepRecord, large: StepRecord, sizes: tuple[int, int], size: float) -> StepRecord:
    """The record of another micro-batch: every storage and every product grows in a straight line with its size.

    Args:
        small: record of a micro-batch of at least two rows.
        large: record of a larger one.
        sizes: of both.
        size: wanted.
    """
    part = (size - sizes[0]) / (sizes[1] - sizes[0])

    def line(first: Any, second: Any) -> Any:
        return first + (second - first) * part

    if len(small.moments) == len(large.moments):
        moments = line(small.moments, large.moments)
    else:  # other operations for another number of rows: what grows is taken to grow in proportion
        moments = large.moments * [size / sizes[1], size / sizes[1], 1.0]
    moments = np.rint(moments).astype(np.int64)
    forward = round(line(small.forward_flops, large.forward_flops))
    backward = round(line(small.backward_flops, large.backward_flops))
    return StepRecord(moments, forward, backward, small.gradient_bytes)


def record_forward(model: InstructBlip, inputs: dict[str, Tensor], device: str = "cuda") -> StepRecord:
    """The forward pass alone, without gradients, as an evaluation runs it."""
    recorder = _Recorder(model, inputs)
    with torch.no_grad(), recorder, _fused_attention(device):
        model.answer_loss(**inputs)
    return StepRecord(np.array(recorder.moments), recorder.flops, 0, 0)


def count_on_shapes(model: InstructBlip, compute: Callable[[], Tensor], device: str = "cuda") -> int:
    """Operations of a part of a model, and of its backward pass where it has one.

    Args:
        model: on the meta device.
        compute: the part, from tensors on the meta device and whole numbers on the CPU.
        device: as in `record_step`.
    """
    recorder = _Recorder(model, {})
    with recorder, _fused_attention(device):
        out = compute()
        if out.requires_grad:
            out.sum().backward()
    model.zero_grad()
    return recorder.flops


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


class _Recorder(TorchDispatchMode):
    """Keeps account of storages and operations; whole numbers stay on the CPU, where their values are known."""

    def __init__(self, model: InstructBlip, inputs: dict[str, Tensor]) -> None:
        super().__init__()
        self.moments: list[Moment] = []
        self.flops = 0
        self._vocabulary = model.get_output_embeddings().weight.shape[0]
        self._alive = {"activations": 0, "logits": 0, "gradients": 0}
        self._kinds: dict[int, tuple[str, int]] = {}
        self._weights = {_key(tensor) for tensor in (*model.parameters(), *model.buffers())}
        for tensor in inputs.values():
            self._see(tensor)

    def own_gradient(self, weight: Tensor) -> None:
        """A weight's gradient is complete: hook of `register_post_accumulate_grad_hook`."""
        assert weight.grad is not None
        key = _key(weight.grad)
        kind, size = self._kinds.get(key, ("", 0))
        if kind and kind != "gradients":
            self._alive[kind] -= size
            self._alive["gradients"] += size
            self._kinds[key] = ("gradients", size)
            self._note()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = _call(func, args, kwargs)
        self.flops += _flops(func, args, kwargs, out)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        return out

    def _see(self, tensor: Tensor) -> None:
        key = _key(tensor)
        if key in self._kinds or key in self._weights:
            return
        storage = tensor.untyped_storage()
        vocabulary = tensor.ndim > 1 and tensor.shape[-1] == self._vocabulary and tensor.is_floating_point()
        kind, size = "logits" if vocabulary else "activations", storage.nbytes()
        self._kinds[key] = (kind, size)
        self._alive[kind] += size
        weakref.finalize(storage, self._gone, key)
        if tensor.is_meta:  # how many small tensors of whole numbers there are depends on the number of rows
            self._note()

    def _gone(self, key: int) -> None:
        kind, size = self._kinds.pop(key)
        self._alive[kind] -= size

    def _note(self) -> None:
        self.moments.append(Moment(**self._alive))


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation: on the meta device if one of its tensors is there, else where they are."""
    if torch.device(kwargs.get("device") or "cpu").type == "meta":
        out = func(*args, **kwargs)
        return out if out.is_floating_point() else func(*args, **{**kwargs, "device": torch.device("cpu")})
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if not any(tensor.is_meta for tensor in tensors) or all(tensor.is_meta for tensor in tensors):
        return func(*args, **kwargs)
    if func.overloadpacket in _INDEXING:
        args = (args[0], [part for index in args[1] for part in _whole(index)], *args[2:])
    args, kwargs = tree_map_only(Tensor, _shape_of, (args, kwargs))
    return func(*args, **kwargs)


def _whole(index: Tensor | None) -> Sequence[Tensor | None]:
    """A mask as the numbers of its places; how many there are is a question of values."""
    return index.nonzero().unbind(1) if index is not None and index.dtype == torch.bool else [index]


def _shape_of(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_meta else torch.empty_like(tensor, device="meta")


def _flops(func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> int:
    packet = func.overloadpacket
    if packet is _FLASH:
        return int(sdpa_flop_count(*(part.shape for part in args[:3])))
    if packet is _FLASH_BACK:
        return int(sdpa_backward_flop_count(*(part.shape for part in args[:4])))
    count: Callable[..., int] | None = flop_registry.get(packet)
    return 0 if count is None else int(count(*args, **kwargs, out_val=out))


@contextmanager
def _fused_attention(device: str) -> Iterator[None]:
    """Attention that keeps no matrix of weights, as kernels on real devices; the meta device would write it out.

    Written out it stays where no such kernel is there: with a trained bias, and on the CPU with dropout. A mode of
    PyTorch's would not reach what activation checkpointing computes again in the backward pass.
    """
    written_out = nn.functional.scaled_dot_product_attention
    nn.functional.scaled_dot_product_attention = partial(_attention, device, written_out)
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = written_out


def _attention(
    device: str,
    written_out: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    biased = attn_mask is not None and attn_mask.requires_grad
    uneven = query.shape[-1] != value.shape[-1]  # as DeepSeek's, which the kernel's shapes do not allow
    if biased or uneven or (dropout_p and device != "cuda"):
        options = {"scale": scale, "enable_gqa": enable_gqa}
        out: Tensor = written_out(query, key, value, attn_mask, dropout_p, is_causal, **options)
        return out
    if enable_gqa:
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros(attn_mask.shape, dtype=query.dtype, device="meta")
    fused: Tensor = _FLASH(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return fused
