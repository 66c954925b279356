"""Tokenisers that read text as text: no character of a data text acts as a control token.

A tokeniser of transformers finds its control tokens (`</s>`, `<image>`, `[SEP]`) in all that it is given, in data too.
Here their characters are pieces of text like all others; the tokens that frame a text are put around it by number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from instructkit.errors import UserError

_MARK = re.compile(r"<.*>|\[.*\]", re.DOTALL)
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""A byte of a letter that the vocabulary lacks: tokenisers write texts with these, however they are listed."""
_HIDDEN = "\ue0ff\ue0fe"
"""In front of a control token's name in the vocabulary it keeps the name from being found: no text holds it."""


class PlainText:
    """A tokeniser for data texts.

    Args:
        tokenizer: any of transformers.

    Attributes:
        before: tokens that the tokeniser puts in front of a text.
        behind: tokens that it puts behind one.
        space: what a text begins with where it goes on from another one, so that both give the tokens of the joined
            text: a space, or nothing where the tokeniser sets one itself.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._control = control_tokens(tokenizer)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._backend = _without(backend, set(self._control.values())) if isinstance(backend, Tokenizer) else None
        # A text may hold what its vocabulary has no token for.
        written = {number for number, name in self._control.items() if _BYTE.fullmatch(name)}
        self._forbidden = self._control.keys() - written - {tokenizer.unk_token_id}
        self.before, self.behind = _frame(tokenizer)
        joined, first, second = self.ids(["question answer", "question", "answer"])
        self.space = "" if joined == first + second else " "

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of texts, without a frame.

        Raises:
            UserError: the tokeniser makes a control token of a text all the same.
        """
        if not texts:
            return []
        if self._backend is not None:
            rows = [encoding.ids for encoding in self._backend.encode_batch(list(texts), add_special_tokens=False)]
        else:
            plain = self._tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)
            rows = plain["input_ids"]
        for text, row in zip(texts, rows, strict=True):
            if not self._forbidden.isdisjoint(row):
                name = self._control[next(token for token in row if token in self._forbidden)]
                raise UserError(
                    f"{text[:80]!r}: {type(self._tokenizer).__name__} reads {name} in a text as its control token and "
                    "cannot be told not to; take it out of the data"
                )
        return rows


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Numbers and names of the tokens that data may not hold.

    These are the special tokens, and added ones that are written as a mark, such as `<image>` and `<think>`, whether
    they are called special or not. Other added tokens are words or blanks and are found in texts as before.
    """
    special = set(tokenizer.all_special_tokens)
    found = {
        number: token.content
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special or token.content in special or _MARK.fullmatch(token.content)
    }
    return found | {tokenizer.convert_tokens_to_ids(name): name for name in special}


def _frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What a tokeniser puts before and behind a text."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    raise UserError(f"{type(tokenizer).__name__}: with its special tokens it gives another text than without")


def unclosed(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy of a tokeniser that puts the same tokens in front of a text and none behind it.

    Raises:
        UserError: it is no tokeniser of the tokenizers library, which alone can be told so.
    """
    copy = deepcopy(tokenizer)
    before, behind = _frame(tokenizer)
    if not behind:
        return copy
    backend = getattr(copy, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise UserError(f"{type(tokenizer).__name__} ends every text with {behind} and cannot be told not to")
    names = tokenizer.convert_ids_to_tokens(before)
    flags = {"add_bos_token": before == [tokenizer.bos_token_id], "add_eos_token": False}
    for flag, value in flags.items():  # Read again when the copy is loaded, where they go over what lies in its file.
        if flag in copy.init_kwargs:
            copy.init_kwargs[flag] = value
        if hasattr(copy, flag):
            setattr(copy, flag, value)
    special = list(dict(zip(names, before, strict=True)).items())
    copy.backend_tokenizer.post_processor = TemplateProcessing(
        single=[*names, "$A"], pair=[*names, "$A", "$B:1"], special_tokens=special
    )
    return copy


def _without(backend: Tokenizer, names: set[str]) -> Tokenizer:
    """A copy of a tokeniser that finds none of these tokens in a text."""
    state = json.loads(backend.to_str())
    state["truncation"] = state["padding"] = None
    for token in state["added_tokens"]:
        token["special"] = token["special"] or token["content"] in names
    copy = Tokenizer.from_str(json.dumps(state))
    copy.encode_special_tokens = True
    # That keeps added tokens from being found. The vocabulary behind them often has the same names: T5's pieces do.
    hidden = {**state, "added_tokens": [], "post_processor": None, "model": _hide(state["model"], names)}
    copy.model = Tokenizer.from_str(json.dumps(hidden)).model
    return copy


def _hide(model: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """The model of a tokeniser (as its JSON has it) with these pieces under names that no text has."""

    def hide(piece: str) -> str:
        return _HIDDEN + piece if piece in names and not _BYTE.fullmatch(piece) else piece

    if isinstance(model["vocab"], list):
        return {**model, "vocab": [[hide(piece), score] for piece, score in model["vocab"]]}
    model = {**model, "vocab": {hide(piece): number for piece, number in model["vocab"].items()}}
    if model.get("unk_token") is not None:
        model["unk_token"] = hide(model["unk_token"])
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if names.isdisjoint([*_pair(pair), "".join(_pair(pair))])]
    return model


def _pair(merge: list[str] | str) -> list[str]:
    return merge.split(" ") if isinstance(merge, str) else merge
