"""Tokenisers from a checkpoint, read as its files say."""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

AS_IT_STANDS = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Classes that say: `tokenizer.json` is all there is to know."""


def open_tokenizer(place: str, **options: Any) -> PreTrainedTokenizerBase:
    """The tokeniser of a checkpoint; one of a class of `AS_IT_STANDS` as its `tokenizer.json` stands.

    `AutoTokenizer` (5.24) reads the tokeniser beside a Qwen2, a Phi-3 and some others by the rules of that LLM's own
    class, whatever the folder says. One that was trained for such an LLM would then split texts otherwise than in its
    training, without a word.

    Args:
        place: folder or hub name.
        options: of `AutoTokenizer.from_pretrained`.
    """
    if "gguf_file" not in options and get_tokenizer_config(place, **options).get("tokenizer_class") in AS_IT_STANDS:
        return PreTrainedTokenizerFast.from_pretrained(place, **options)
    return AutoTokenizer.from_pretrained(place, **options)
