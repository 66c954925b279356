"""Rows of unequal length laid end to end, without padding, with attention that keeps them apart.

Linear layers, norms and feed-forwards of a transformer do not care which row a token belongs to: they run over the
packed tokens. Attention does care. Here it is computed row by row (variable-length flash attention on CUDA), or for
some rows of similar length at once, so a token sees what it sees in a padded batch and nothing else.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache, cached_property
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

ATTENTION = "packed_rows"
"""Name of this attention among transformers' implementations."""

WIDEST_HEAD = 256
"""Of those that PyTorch's variable-length attention takes, which must be multiples of 8."""

# Some padding inside attention costs less than one more kernel call.
PADDING = 1.25


def similar_rows(lengths: Sequence[tuple[int, ...]], padding: float = PADDING) -> list[list[int]]:
    """Rows in groups that need little padding when they are put side by side.

    Args:
        lengths: of each row, one number a text (encoder and decoder, say).
        padding: tokens of a group with padding, at most, over its tokens without.

    Returns:
        Numbers of the rows, shortest groups first.
    """
    groups: list[list[int]] = []
    longest: tuple[int, ...] = ()
    tokens = 0
    for row in sorted(range(len(lengths)), key=lambda row: (sum(lengths[row]), lengths[row])):
        wider = tuple(map(max, lengths[row], longest)) if longest else lengths[row]
        if groups and (len(groups[-1]) + 1) * sum(wider) <= padding * (tokens + sum(lengths[row])):
            groups[-1].append(row)
            longest, tokens = wider, tokens + sum(lengths[row])
        else:
            groups.append([row])
            longest, tokens = lengths[row], sum(lengths[row])
    return groups


class Padded(NamedTuple):
    """How packed tokens are spread over groups of similar rows.

    Attributes:
        source: token at each place of all groups, end to end; padding repeats a row's last token.
        padding: True for the places that are padding.
        back: place of each token.
        shapes: rows, longest row and whether all are as long, of each group.
    """

    source: Tensor
    padding: Tensor
    back: Tensor
    shapes: list[tuple[int, int, bool]]


class Rows:
    """Rows of a packed tensor.

    Args:
        lengths: tokens of each row, at least one.
        device: where the tensors live.
        order: tokens of the packed tensor in the order of the rows, where they do not follow each other, `[tokens]`.

    Attributes:
        masked: whether tokens see less of their row than all of it, or all before them; no kernel then takes them.
    """

    masked = False

    def __init__(self, lengths: Sequence[int], device: torch.device, order: Tensor | None = None) -> None:
        self.lengths = list(lengths)
        self.device = device
        self.order = order
        self._nears: dict[tuple[int, int], Tensor] = {}

    @cached_property
    def positions(self) -> Tensor:
        """Position of each token in its row, `[tokens]`, in the order of the rows."""
        return torch.cat([torch.arange(length) for length in self.lengths]).to(self.device)

    @cached_property
    def owner(self) -> Tensor:
        """Row of each token, `[tokens]`, in the order of the rows."""
        return torch.repeat_interleave(torch.arange(len(self.lengths)), torch.tensor(self.lengths)).to(self.device)

    @cached_property
    def ends(self) -> Tensor:
        """Where rows begin and end, `[rows + 1]`, as variable-length kernels read it."""
        total = torch.tensor([0, *self.lengths]).cumsum(0)
        return total.to(torch.int32).to(self.device)

    @cached_property
    def spread(self) -> Padded:
        """The layout for attention over groups of similar rows."""
        starts = [0, *torch.tensor(self.lengths).cumsum(0).tolist()]
        index, shapes = [], []
        for group in similar_rows([(length,) for length in self.lengths]):
            sizes = [self.lengths[row] for row in group]
            steps = torch.arange(max(sizes))
            index += [starts[row] + steps.clamp(max=self.lengths[row] - 1) for row in group]
            shapes.append((len(group), max(sizes), min(sizes) == max(sizes)))
        places = torch.cat(index)
        padding = torch.zeros_like(places, dtype=torch.bool)
        padding[1:] = places[1:] == places[:-1]
        back = torch.empty(starts[-1], dtype=torch.long)
        back[places[~padding]] = (~padding).nonzero()[:, 0]
        if self.order is not None:
            order = self.order.cpu()
            back = back[torch.argsort(order)]
            places = order[places]
        return Padded(places.to(self.device), padding.to(self.device), back.to(self.device), shapes)

    @cached_property
    def masks(self) -> list[Tensor | None]:
        """Which places a group's rows see, `[rows, 1, 1 or places, places]`; None where every place sees all."""
        paddings = self.spread.padding.split([rows * longest for rows, longest, _ in self.spread.shapes])
        return [
            None if even else ~padding.view(rows, 1, 1, longest)
            for (rows, longest, even), padding in zip(self.spread.shapes, paddings, strict=True)
        ]

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        causal: bool,
        scale: float | None,
        dropout: float = 0.0,
        window: int | None = None,
    ) -> Tensor:
        """Attention of every row over itself.

        Args:
            query: `[tokens, heads, head width]`.
            key: `[tokens, key heads, head width]`; heads may share keys.
            value: as `key`.
            causal: whether a token sees only those before it and itself.
            scale: of the scores; None for 1 / sqrt(head width).
            dropout: of the attention weights.
            window: how many tokens a token sees at most, itself among them, in causal attention; None for all.

        Returns:
            `[tokens, heads, head width]`.
        """
        if window is not None and window >= max(self.lengths):
            window = None
        kernel = None
        if query.is_cuda and query.dtype != torch.float32 and not dropout and not self.masked:
            kernel = _variable_length() if fits_kernel(query.shape[-1]) else None
        if kernel is not None and (window is None or "window_size" in _parameters(kernel)):
            return self._by_kernel(kernel, query, key, value, causal, scale, window)
        layout = self.spread
        spread = [_Spread.apply(part, layout.source, layout.back) for part in (query, key, value)]
        sizes = [rows * longest for rows, longest, _ in layout.shapes]
        outputs = []
        masks = [None] * len(sizes) if causal else self.masks  # causal attention does not look behind a row's tokens
        for (rows, longest, _), mask, *parts in zip(
            layout.shapes, masks, *(part.split(sizes) for part in spread), strict=True
        ):
            q, k, v = (part.unflatten(0, (rows, longest)).transpose(1, 2) for part in parts)
            if window is not None and window < longest:
                mask = self._near(longest, window)
            out = nn.functional.scaled_dot_product_attention(
                q,
                k,
                v,
                mask,
                dropout,
                is_causal=causal and mask is None,
                scale=scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )
            outputs.append(out.transpose(1, 2).flatten(0, 1))
        collected: Tensor = _Collect.apply(torch.cat(outputs), layout.source, layout.padding, layout.back)
        return collected

    def _near(self, length: int, window: int) -> Tensor:
        """Which tokens of a row a token sees within an attention window, `[length, length]`; made once for all layers.

        Args:
            length: of the row.
            window: tokens that a token sees, itself among them.
        """
        if (length, window) not in self._nears:
            every = torch.ones(length, length, dtype=torch.bool, device=self.device)
            self._nears[length, window] = every.tril().triu(1 - window)
        return self._nears[length, window]

    def _by_kernel(
        self,
        kernel: Callable[..., Any],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        causal: bool,
        scale: float | None,
        window: int | None,
    ) -> Tensor:
        """Attention by a variable-length kernel, which reads the rows one behind the other."""
        if self.order is not None:
            query, key, value = (part[self.order] for part in (query, key, value))
        longest = max(self.lengths)
        known = _parameters(kernel)
        options: dict[str, Any] = {}
        if query.shape[1] != key.shape[1]:
            if "enable_gqa" in known:
                options["enable_gqa"] = True
            else:
                key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], 1) for part in (key, value))
        if scale is not None:
            if "scale" in known:
                options["scale"] = scale
            else:  # the kernel then divides by the root of the head width
                query = query * (scale * query.shape[-1] ** 0.5)
        if "window_size" in known:
            behind = -1 if window is None else window - 1  # the kernel does not count the token itself
            options["window_size"] = (behind, 0) if causal else (-1, -1)
        else:
            options["is_causal"] = causal
        out: Tensor = kernel(
            query.contiguous(),
            key.contiguous(),
            value.contiguous(),
            self.ends,
            self.ends,
            longest,
            longest,
            **options,
        )
        return out if self.order is None else out[torch.argsort(self.order)]


class _Spread(torch.autograd.Function):
    """Packed tokens to their places. Padding gets no gradient, so going back is a gather as well, not a sum."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, index: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return packed.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return gradient.index_select(0, back), None, None


class _Collect(torch.autograd.Function):
    """Places to packed tokens; padding is dropped."""

    @staticmethod
    def forward(ctx: Any, placed: Tensor, index: Tensor, padding: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(index, padding)
        return placed.index_select(0, back)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        index, padding = ctx.saved_tensors
        placed = gradient.index_select(0, index)
        return placed.masked_fill_(padding.view(-1, *[1] * (placed.ndim - 1)), 0), None, None, None


@cache
def _variable_length() -> Callable[..., Any] | None:
    """PyTorch's variable-length attention, where this version has one whose causal mask can be set; else None."""
    try:
        kernel: Callable[..., Any] = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except ModuleNotFoundError:
        return None
    return kernel if {"window_size", "is_causal"} & _parameters(kernel) else None


def fits_kernel(width: int) -> bool:
    """Whether PyTorch's variable-length attention takes heads of a width; it raises on all others (2.11 on an H100)."""
    return width % 8 == 0 and width <= WIDEST_HEAD


def why_no_kernel(config: Any) -> str | None:
    """Why packed rows are padded inside attention on a GPU, too; None where PyTorch's kernel takes them as they are.

    Args:
        config: of the LLM.
    """
    if _variable_length() is None:
        return f"torch {torch.__version__} has no variable-length attention known here: rows are padded inside it"
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if not fits_kernel(width):
        return f"variable-length attention takes no heads of width {width}: rows are padded inside it"
    return None


@cache
def _parameters(kernel: Callable[..., Any]) -> frozenset[str]:
    """Names of a kernel's arguments: torch 2.10 knows `is_causal`; 2.11 `scale`, `window_size`; 2.12 `enable_gqa`."""
    return frozenset(signature(kernel).parameters)


_packed: ContextVar[tuple[nn.Module, Rows]] = ContextVar("packed")


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer: query, key and value are `[1, heads, tokens, head width]`."""
    packed = (part[0].transpose(0, 1) for part in (query, key, value))
    window = kwargs.get("sliding_window")
    rows = _packed.get()[1]
    return rows.attention(*packed, causal=True, scale=scaling, dropout=dropout, window=window).unsqueeze(0), None


AttentionInterface.register(ATTENTION, attend)


@contextmanager
def packed_rows(llm: nn.Module, rows: Rows) -> Iterator[None]:
    """Let an LLM's attention keep the rows of `[1, tokens]` inputs apart."""
    modules: Any = llm.modules()
    configs = {id(module.config): module.config for module in modules if hasattr(module, "config")}
    before = [(config, config._attn_implementation) for config in configs.values()]
    token = _packed.set((llm, rows))
    try:
        for config, _ in before:
            config._attn_implementation = ATTENTION
        yield
    finally:
        for config, name in before:
            config._attn_implementation = name
        _packed.reset(token)


def as_now() -> AbstractContextManager[None]:
    """What `packed_rows` has set up at this moment, to be set up again later, in whatever thread."""
    packed = _packed.get(None)
    return nullcontext() if packed is None else packed_rows(*packed)
