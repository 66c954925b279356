"""What a training step computes and what it keeps alive meanwhile, found by running it on shapes alone.

`record_step` runs forward and backward pass of the real model on PyTorch's meta device, where tensors have a shape and
no data, and keeps account of every storage that is alive: what autograd saves, what a layer needs in passing, what
gradients come to. Lengths and masks decide what a model computes, so whole numbers stay real, on the CPU.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from instructkit.models.instruct_blip import InstructBlip

_aten = torch.ops.aten
_INDEXING = (_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_, _aten._unsafe_index)
_FLASH, _FLASH_BACK = (
    _aten._scaled_dot_product_flash_attention_for_cpu,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward,
)


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
