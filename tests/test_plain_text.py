"""Data is text: the names of control tokens in it are read as their letters, by tokenisers of every kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import sentencepiece
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from instructkit.errors import UserError
from instructkit.models.batches import Texts
from instructkit.models.load.new_tokenizers import train_llm_tokenizer, train_qformer_tokenizer
from instructkit.models.plain_text import PlainText, control_tokens
from instructkit.prompts.templates import Prompt
from tests.tiny import SENTENCES, tiny_config

MARKS = ["<image>", "</s>", "<s>", "<unk>", "<pad>", "<|endoftext|>", "[SEP]", "[PAD]", "[CLS]"]
CORPUS = [*SENTENCES, *(letter for letter in "<>/|[]_ABCDEILPS unkpadimgtexofs.")]


def byte_level(special: list[str]) -> tuple[Tokenizer, trainers.BpeTrainer]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return tokenizer, trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )


def gpt2() -> PreTrainedTokenizerFast:
    tokenizer, trainer = byte_level(["<|endoftext|>"])
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


def with_added_tokens() -> PreTrainedTokenizerFast:
    """Special tokens that swallow the blanks beside them, and an image token that is not called special."""
    tokenizer = gpt2()
    swallowing = [AddedToken(mark, lstrip=True, rstrip=True, special=True) for mark in ("</s>", "[SEP]")]
    tokenizer.add_special_tokens({"additional_special_tokens": swallowing})
    tokenizer.add_tokens([AddedToken("<image>", special=False, lstrip=True), AddedToken("<think>", special=False)])
    return tokenizer


def pieces_of_llama() -> PreTrainedTokenizerFast:
    """BPE over characters with bytes for what it lacks, as Llama's; control tokens stand in its vocabulary."""
    special = ["<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=[*special, *BYTES], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in special]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def unigram_of_t5() -> PreTrainedTokenizerFast:
    """Unigram, of which the control tokens are pieces with the best score of all, as T5's."""
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False, initial_alphabet=list("<>/|[]")
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def whole_words() -> PreTrainedTokenizerFast:
    """Words between blanks, of which a control token is one."""
    words = dict.fromkeys(["[UNK]", "[SEP]", "</s>", *" ".join(SENTENCES).split(), *MARKS])
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"unk_token": "[UNK]", "sep_token": "[SEP]", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **names, additional_special_tokens=["<image>", "[CLS]", "<unk>"]
    )


def bert() -> PreTrainedTokenizerFast:
    return train_qformer_tokenizer(CORPUS, 200)


def nano() -> PreTrainedTokenizerFast:
    return train_llm_tokenizer(CORPUS, 400)


FAMILIES: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "nano": nano,
    "gpt2": gpt2,
    "with_added_tokens": with_added_tokens,
    "llama": pieces_of_llama,
    "t5": unigram_of_t5,
    "bert": bert,
    "whole_words": whole_words,
    "byt5": ByT5Tokenizer,
}
BYTES = [f"<0x{octet:02X}>" for octet in range(256)]
LOSSLESS = {"nano", "gpt2", "with_added_tokens", "llama", "byt5"}
"""Families that give every text back."""


@pytest.mark.parametrize("family", FAMILIES)
def test_no_text_holds_a_control_token(family: str) -> None:
    tokenizer = FAMILIES[family]()
    plain = PlainText(tokenizer)
    control = control_tokens(tokenizer)
    names = {*MARKS, *control.values()}
    texts = [f"{before}{name}{behind}" for name in sorted(names) for before in ("", "a red ") for behind in ("", " is")]
    for text, ids in zip(texts, plain.ids(texts), strict=True):
        assert not {control[number] for number in ids if number in control} - {tokenizer.unk_token}, text
        if family in LOSSLESS:
            assert tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip() == text
            assert tokenizer.decode(ids, clean_up_tokenization_spaces=False, skip_special_tokens=True).strip() == text


@pytest.mark.parametrize("family", FAMILIES)
def test_other_texts_have_the_tokens_that_the_tokenizer_gives_them(family: str) -> None:
    tokenizer = FAMILIES[family]()
    texts = [*SENTENCES, "", "A  wide   gap\nand a line", "é 漢字"]
    plain = PlainText(tokenizer)
    assert plain.ids(texts) == tokenizer(texts, add_special_tokens=False)["input_ids"]
    for text, ids in zip(texts, plain.ids(texts), strict=True):
        assert [*plain.before, *ids, *plain.behind] == tokenizer(text)["input_ids"]


def test_added_words_and_blanks_are_still_found() -> None:
    tokenizer = gpt2()
    tokenizer.add_tokens(["circle", AddedToken("    ", normalized=False)])
    words, blanks = tokenizer.convert_tokens_to_ids(["circle", "    "])
    (ids,) = PlainText(tokenizer).ids(["a circle    here </s> circle"])
    assert ids.count(words) == 2
    assert blanks in ids


def test_the_tokenizer_itself_stays_as_it_was() -> None:
    tokenizer = nano()
    PlainText(tokenizer).ids(["<image> </s>"])
    assert tokenizer("<image></s>")["input_ids"] == [1, 3, 2]


@pytest.mark.parametrize("llm", ["llama", "t5"])
def test_rows_hold_control_tokens_only_where_the_layout_puts_them(llm: str) -> None:
    words, qformer = nano(), bert()
    texts = Texts(words, qformer, tiny_config(llm, len(words), len(qformer)))
    marks = " ".join(MARKS)
    prompt = Prompt("s/t/0", "x", f"<image>\nwhat {marks}?", f"it says </s> twice {marks}", ["a.png"])
    (row,) = texts.encode([prompt])
    rows = texts.rows([row], [1])
    assert (rows["input_ids"] == texts.image_token).sum() == texts.queries
    assert words.decode(row.answer[:-1]).strip() == prompt.target
    assert row.answer.count(words.eos_token_id) == 1
    assert row.answer[-1] == words.eos_token_id
    assert row.qformer.count(qformer.sep_token_id) == 1
    assert qformer.pad_token_id not in row.qformer
    candidates = texts.encode_answers(["</s>", "no <pad>"])
    assert [words.decode(ids).strip() for ids in candidates] == ["</s>", "no <pad>"]


def test_a_tokenizer_that_cannot_be_told_is_refused_in_one_line(tmp_path: Any) -> None:
    """sentencepiece finds symbols of the user's own in every text."""
    (tmp_path / "text").write_text("\n".join(CORPUS * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=60,
        user_defined_symbols=["<image>"],
        hard_vocab_limit=False,
        minloglevel=2,
    )
    from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

    tokenizer = SentencePieceBackend(
        vocab_file=str(tmp_path / "spiece.model"), eos_token="</s>", additional_special_tokens=["<image>"]
    )
    plain = PlainText(tokenizer)
    (ids,) = plain.ids(["a red </s> circle"])
    assert tokenizer.eos_token_id not in ids
    with pytest.raises(UserError, match=r"^'an <image> tag': SentencePieceBackend reads <image> in a text as its"):
        plain.ids(["an <image> tag"])
