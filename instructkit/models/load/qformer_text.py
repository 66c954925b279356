"""The text side of a Q-Former in a file of its own: transformers' BLIP-2 has no place for it.

It is the embeddings of words and positions and the feed-forwards of text, under the names that they have in an
`InstructBlip`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from instructkit.errors import UserError
from instructkit.models.load.parts import failing, place_of, quiet
from instructkit.models.load.tokenizer_files import open_tokenizer

TEXT = "qformer_text.safetensors"
"""What of a Q-Former transformers' BLIP-2 has no place for, beside its weights."""
QFORMER_TOKENIZER = "qformer_tokenizer"
"""Folder of the tokeniser of that text, where InstructBLIP has it, too."""

_TEXT = re.compile(r"qformer\.(embeddings\.(word|position)_embeddings\.|encoder\.layer\.\d+\.(intermediate|output)\.)")


def is_text(name: str) -> bool:
    """Whether a parameter of an `InstructBlip` belongs to the text side of its Q-Former."""
    return _TEXT.match(name) is not None


def text_of(name: str) -> dict[str, Tensor] | None:
    """The text side of a BLIP-2's Q-Former, under the names that it has in an `InstructBlip`; None without one.

    Raises:
        UserError: it cannot be read.
    """
    if (file := text_file(name)) is None:
        return None
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from error


def text_file(name: str) -> str | None:
    """Where the text side of a BLIP-2's Q-Former lies, None where it has none."""
    place = place_of(name)
    if Path(place).is_dir():
        return str(Path(place) / TEXT) if (Path(place) / TEXT).is_file() else None
    missing = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
    with failing(name, f"{TEXT} cannot be looked for"), quiet():
        found: str | None = cached_file(place, TEXT, **missing)
    return found


def put_text(qformer: nn.Module, text: Mapping[str, Tensor], name: str) -> None:
    """Put the text side that `text_of` read into a Q-Former, in place.

    Raises:
        UserError: it does not fit, or is not whole.
    """
    own = {key: weight for key, weight in qformer.named_parameters(prefix="qformer") if is_text(key)}
    for key in own.keys() | text.keys():
        if key not in own or key not in text or own[key].shape != text[key].shape:
            raise UserError(f"{name}: {TEXT} does not fit the Q-Former beside it: {key}")
    with torch.no_grad():
        for key, weight in own.items():
            weight.copy_(text[key])


def qformer_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokeniser of the text that a BLIP-2's Q-Former reads, beside `qformer_text.safetensors`.

    Raises:
        UserError: there is none.
    """
    with failing(name, "the tokenizer of its Q-Former cannot be loaded"), quiet():
        return open_tokenizer(place_of(name), subfolder=QFORMER_TOKENIZER)
