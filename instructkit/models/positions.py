"""How many positions an LLM has: a table cannot be read beyond its end, rotary positions go on."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from torch import Tensor, nn

_NAME = re.compile(r"wpe|(?<!rel_)(?<!relative_)pos(ition)?s?(_|$)|(?<!rel_)(?<!relative_)positional")


class Positions(NamedTuple):
    """Longest rows of an LLM.

    Attributes:
        read: tokens, soft prompts among them, of a decoder-only LLM's whole row, or of what an encoder reads; None
            where nothing bounds them (T5, state space models).
        written: tokens of an encoder-decoder's answer with its start token; None likewise.
        table: `read` is the end of a table; else it is what a rotary LLM was made for.
    """

    read: int | None = None
    written: int | None = None
    table: bool = False


def positions_of(llm: Any) -> Positions:
    """Positions of a causal or sequence-to-sequence LLM, from its modules and its configuration."""
    if llm.config.is_encoder_decoder:
        read, written = _table(llm.get_encoder()), _table(llm.get_decoder())
        return Positions(read, written, read is not None)
    table = _table(llm)
    made_for = getattr(llm.config, "max_position_embeddings", None)
    if table is not None:
        return Positions(table, table=True)
    return Positions(made_for if isinstance(made_for, int) and made_for > 0 else None)


def _table(module: nn.Module) -> int | None:
    """Rows of the shortest table of positions in a module that a token can have."""
    found = []
    for name, part in module.named_modules():
        if isinstance(part, nn.Embedding) and _NAME.search(name.rpartition(".")[2]):
            # OPT and BART leave rows free in front, RoBERTa those up to its padding.
            before = getattr(part, "offset", 0) if part.padding_idx is None else part.padding_idx + 1
            found.append(part.num_embeddings - before)
    # GPT-J and CodeGen keep sines and cosines in a table, CTRL in a bare tensor.
    for part in module.modules():
        for name in ("pos_encoding", "embed_positions"):
            tensor = getattr(part, name, None)
            if isinstance(tensor, Tensor) and tensor.ndim == 2:
                found.append(len(tensor))
    return min(found, default=None)
