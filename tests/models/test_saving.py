"""Models saved whole: plain transformers runs them and says the same, whatever tokeniser the LLM came with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    PreTrainedTokenizerFast,
)

from instructkit.config.settings import ModelConfig
from instructkit.evaluation.generate import generate_ids
from instructkit.models.batches import Texts
from instructkit.models.instruct_blip import InstructBlip
from instructkit.models.load.join import join
from instructkit.models.load.llm import load_llm
from instructkit.models.load.new_tokenizers import train_llm_tokenizer, train_qformer_tokenizer
from instructkit.models.save import load_model, save_model
from instructkit.prompts.protocols import Decoding
from instructkit.prompts.templates import Prompt
from tests.matrix import mostly_full
from tests.models.checkpoints import write_llm
from tests.tiny import SENTENCES, tiny_model

ASKED = "is there a red circle?"


def joined(llm: Path) -> tuple[InstructBlip, Texts]:
    def tokenizers() -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
        return train_llm_tokenizer(SENTENCES, 300), train_qformer_tokenizer(SENTENCES, 110)

    model, texts = join(ModelConfig(name="nano", llm=str(llm)), torch.float32, tokenizers)
    return model.eval(), texts


@torch.no_grad()
def ours(model: InstructBlip, texts: Texts, pixels: torch.Tensor) -> tuple[list[int], list[int], torch.Tensor]:
    """What the LLM reads, what it writes, and its scores of the first token that it writes."""
    rows = texts.prefixes(texts.encode([Prompt("a/b/0", "t", ASKED, None, ["0"])]), [1])
    mask = rows.pop("attention_mask")
    sharing = {"image_index": torch.tensor([0]), "image_rows": torch.tensor([0])}
    embeds = model.prefix(pixel_values=pixels, **sharing, **rows)
    decoding = Decoding(num_beams=1, max_new_tokens=6)
    end = texts.llm.eos_token_id
    ids = generate_ids(model.language_model, embeds, mask, decoding, end=end, pad=texts.pad)[0].tolist()
    given: dict[str, Any] = {"inputs_embeds": embeds}
    if not texts.decoder_only:
        given["decoder_input_ids"] = torch.tensor([[model.language_model.config.decoder_start_token_id]])
    return rows["input_ids"][0].tolist(), ids, model.language_model(**given).logits[0, -1]


@torch.no_grad()
def theirs(folder: Path) -> tuple[list[int], list[int], torch.Tensor, torch.Tensor]:
    """The same by plain transformers, and the pixels that its processor made."""
    model = InstructBlipForConditionalGeneration.from_pretrained(folder).eval()
    processor = InstructBlipProcessor.from_pretrained(folder)
    inputs = processor(images=Image.new("RGB", (64, 64), (30, 200, 90)), text=ASKED, return_tensors="pt")
    end = processor.tokenizer.eos_token_id
    settings = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": end, "pad_token_id": end}
    ids = model.generate(**inputs, **settings)[0].tolist()
    given = {"decoder_input_ids": torch.tensor([[0]])} if model.config.text_config.is_encoder_decoder else {}
    logits = model(**inputs, **given).logits[0, -1]
    read = inputs["input_ids"][0].tolist()
    written = ids if given else ids[len(read) if ids[: len(read)] == read else 0 :]
    return read, written, logits, inputs["pixel_values"]


def same(folder: Path, model: InstructBlip, texts: Texts) -> int:
    """Compare; the number of rows that the saved embeddings have more."""
    read, written, logits, pixels = theirs(folder)
    expected_read, expected, scores = ours(model, texts, pixels)
    assert read == expected_read
    assert written == expected
    torch.testing.assert_close(logits[: len(scores)], scores, atol=1e-4, rtol=1e-4)
    again, other = load_model(str(folder))
    for found, wanted in zip(ours(again.eval(), other, pixels)[:2], (read, written), strict=True):
        assert found == wanted
    return len(logits) - len(scores)


@pytest.mark.parametrize(
    ("family", "tied"),
    mostly_full(
        [("llama", False), ("qwen2", True), ("qwen2", False), ("t5", False), ("gpt2", True)],
        ("llama", False),
        ("qwen2", True),
        ("t5", False),
    ),
)
def test_an_llm_without_an_image_token_gets_a_row_for_it(family: str, tied: bool, tmp_path: Path) -> None:
    llm = write_llm(tmp_path / "llm", family, bare=True, tie_word_embeddings=tied)
    model, texts = joined(llm)
    rows = len(model.get_input_embeddings().weight)
    assert texts.image_token == rows
    save_model(model, texts, tmp_path / "whole")
    assert len(model.get_input_embeddings().weight) == rows
    assert same(tmp_path / "whole", model, texts) == 1
    saved = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert saved["image_token_index"] == rows
    assert saved["text_config"]["vocab_size"] == rows + 1
    # The row's score is the mean of the others', so no answer ever has it.
    logits = theirs(tmp_path / "whole")[2]
    assert logits[rows].item() == pytest.approx(logits[:rows].mean().item(), abs=1e-4)
    # Loaded here it has its own rows alone, and saved once more it grows no further.
    again, other = load_model(str(tmp_path / "whole"))
    assert len(again.get_input_embeddings().weight) == again.get_output_embeddings().weight.shape[0] == rows
    assert again.config.text_config.vocab_size == rows
    alone = load_llm(str(tmp_path / "whole"), torch.float32).loaded.module
    assert len(alone.get_input_embeddings().weight) == rows
    save_model(again, other, tmp_path / "again")
    assert same(tmp_path / "again", again.eval(), other) == 1


def test_spare_rows_are_used(tmp_path: Path) -> None:
    llm = write_llm(tmp_path / "llm", "llama", bare=True)
    model = AutoModelForCausalLM.from_pretrained(llm)
    model.resize_token_embeddings(model.config.vocab_size + 24)
    model.save_pretrained(llm)
    model, texts = joined(llm)
    save_model(model, texts, tmp_path / "whole")
    assert same(tmp_path / "whole", model, texts) == 0


@pytest.mark.parametrize("how", ["template", "flag"])
@pytest.mark.parametrize("start", [True, False])
def test_a_tokenizer_that_closes_texts_does_not_close_instructions(how: str, start: bool, tmp_path: Path) -> None:
    words = train_llm_tokenizer(SENTENCES, 400)
    before = "<s> " if start else ""
    if how == "template":
        special = [("<s>", 1), ("</s>", 2)]
        single, pair = f"{before}$A </s>", f"{before}$A </s> $B </s>"
        words.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=special
        )
    else:
        words = PreTrainedTokenizerFast(
            tokenizer_object=words.backend_tokenizer,
            pad_token="<pad>",
            bos_token="<s>",
            eos_token="</s>",
            add_bos_token=start,
            add_eos_token=True,
        )
        words.update_post_processor()
    ids = {"vocab_size": len(words), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **shape, **ids)).save_pretrained(tmp_path / "llm")
    words.save_pretrained(tmp_path / "llm")
    closing = AutoTokenizer.from_pretrained(tmp_path / "llm")(ASKED)["input_ids"]
    assert closing[-1] == 2
    assert (closing[0] == 1) == start

    model, texts = joined(tmp_path / "llm")
    (row,) = texts.encode([Prompt("a/b/0", "t", ASKED, "yes", ["0"])])
    assert row.instruction == closing[:-1]
    assert row.answer[-1] == 2
    ids_of_row = texts.rows([row], [1])["input_ids"][0].tolist()
    assert ids_of_row == [texts.image_token] * texts.queries + closing[:-1] + row.answer
    assert ids_of_row.count(2) == 1
    save_model(model, texts, tmp_path / "whole")
    assert same(tmp_path / "whole", model, texts) == 0


def test_an_encoder_keeps_the_end_of_its_texts() -> None:
    words, qformer = train_llm_tokenizer(SENTENCES, 400), train_qformer_tokenizer(SENTENCES, 120)
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", 2)]
    )
    texts = Texts(words, qformer, tiny_model("t5")[0].config)
    (row,) = texts.encode([Prompt("a/b/0", "t", ASKED, "yes", ["0"])])
    assert row.instruction == words(ASKED)["input_ids"]
    assert row.instruction[-1] == 2


@pytest.mark.parametrize("llm", ["llama", "t5"])
def test_a_checkpoint_without_image_token_index_takes_the_tokenizers(llm: str, tmp_path: Path) -> None:
    model, texts = tiny_model(llm)
    save_model(model.eval(), texts, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["image_token_index"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    old, read = load_model(str(tmp_path))
    assert read.image_token == old.config.image_token_index == 3
    pixels = torch.randn(1, 3, 16, 16)
    *found, scores = ours(old.eval(), read, pixels)
    *wanted, expected = ours(model, texts, pixels)
    assert found == wanted
    torch.testing.assert_close(scores, expected)
    save_model(old, read, tmp_path / "again")
    assert same(tmp_path / "again", old, read) == 0
