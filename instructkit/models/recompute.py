"""How the towers' layers are run: computed a second time instead of keeping what they made, or compiled."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from instructkit.errors import UserError
from instructkit.models.packing import ATTENTION, Rows, as_now, attend
from instructkit.models.qformer import Sharing


def recompute_layers(model: Any) -> None:
    """Let every layer keep its input alone for the backward pass and be computed again there, in place.

    Loss and gradients stay the same bit for bit; dropout draws the same again. transformers' own switch leaves out
    layers in evaluation mode, such as those of a frozen LLM, which keep the most: gradients pass through them on the
    way to the soft prompts.
    """
    for layer in _layers(model):
        layer.forward = _recomputed(layer.forward)
    if hasattr(model, "read_layer"):
        model.read_layer = _recomputed(model.read_layer)


def compile_layers(model: Any, backend: str = "inductor") -> None:
    """Compile the layers of all towers, in place; layers that are alike share what was compiled.

    Lengths are symbols in it, so that batches of other lengths compile nothing again. Attention over packed rows, whose
    lengths decide what is computed, stays outside.

    Args:
        model: the model.
        backend: of torch.compile.

    Raises:
        UserError: the compiler that the backend needs is not there.
    """
    if backend == "inductor":
        check_compiler(next(model.parameters()).device.type)
    # What these compute depends on the lengths of a batch's rows: each batch would be compiled again.
    AttentionInterface.register(ATTENTION, torch.compiler.disable(attend))
    for kind in (Rows, Sharing):
        kind.attention = torch.compiler.disable(kind.attention)  # type: ignore[method-assign]
    # Two lengths that happen to be equal in the first batch are still two.
    torch.fx.experimental._config.use_duck_shape = False
    # Kinds of layers that share the wrapper which transformers puts around them count together.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    for layer in _layers(model):
        layer.forward = torch.compile(layer.forward, dynamic=True, backend=backend)
    if hasattr(model, "read_layer"):
        model.read_layer = torch.compile(model.read_layer, dynamic=True, backend=backend)


def compiler() -> str:
    """Name of the C++ compiler that torch.compile calls on the CPU."""
    return os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")


def check_compiler(device: str) -> None:
    """Look for the compiler that torch.compile calls on a device, "cpu" or "cuda".

    Raises:
        UserError: it is not there.
    """
    missing = None
    if device == "cpu" and shutil.which(compiler()) is None:
        missing = f"the C++ compiler {compiler()}"
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        missing = "the package triton"
    if missing is not None:
        raise UserError(f"training.compile=true needs {missing}, which is not there; install it or leave compile out")


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    yield from (part for part in model.modules() if isinstance(part, GradientCheckpointingLayer))


def _recomputed(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def twice(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return function(*args, **kwargs)
        return checkpoint(function, *args, use_reentrant=False, context_fn=_contexts, **kwargs)

    return twice


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What the first and the second pass run in: the backward pass comes after packing has ended."""
    return nullcontext(), as_now()
