"""Rows of the length that `positions_of` gives run through the LLM; longer ones do not where it says it is a table."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from instructkit.models.positions import Positions, positions_of

IDS = {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 24}
BART = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
BART |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 24}
TABLES: dict[str, dict[str, Any]] = {
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "openai-gpt": GPT,
    "gptj": {**GPT, "rotary_dim": 4},
    "codegen": {**GPT, "rotary_dim": 4},
    "ctrl": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 24, "dff": 48},
    "opt": {**LAYERS, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 24},
    "biogpt": {**LAYERS, "max_position_embeddings": 24},
    "bert": {**LAYERS, "max_position_embeddings": 24, "is_decoder": True},
    "roberta": {**LAYERS, "max_position_embeddings": 24, "is_decoder": True},
    "bart": BART,
}


def runs(llm: Any, length: int) -> bool:
    width = llm.get_input_embeddings().weight.shape[1]
    inputs: dict[str, Any] = {"inputs_embeds": torch.zeros(1, length, width)}
    if llm.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.ones(1, 2, dtype=torch.long)
    try:
        with torch.no_grad():
            llm.eval()(**inputs)
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("family", TABLES)
def test_the_end_of_a_table_is_where_rows_stop_running(family: str) -> None:
    llm = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **TABLES[family], **IDS))
    found = positions_of(llm)
    assert found.table
    assert found.read is not None
    assert runs(llm, found.read)
    assert not runs(llm, found.read + 1)


def test_tables_of_an_encoder_decoder() -> None:
    llm = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("mvp", **BART, **IDS, decoder_start_token_id=0))
    assert positions_of(llm) == Positions(24, 24, table=True)
    assert runs(llm, 24)
    assert not runs(llm, 25)


@pytest.mark.parametrize(
    ("family", "settings", "read"),
    [
        ("llama", {**LAYERS, "max_position_embeddings": 24}, 24),
        ("gpt_neox", {**LAYERS, "max_position_embeddings": 24}, 24),
        ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}, None),
    ],
)
def test_others_go_on_behind_what_they_were_made_for(family: str, settings: dict[str, Any], read: int | None) -> None:
    llm = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings, **IDS))
    assert positions_of(llm) == Positions(read)
    assert runs(llm, 40)


def test_relative_positions_have_no_end() -> None:
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "n_positions": 8}
    llm = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", **shape, vocab_size=40))
    assert positions_of(llm) == Positions()
    assert runs(llm, 40)
