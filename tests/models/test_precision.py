"""Towers in precisions of their own, as BLIP-2 was published: a half-precision LLM behind a Q-Former in another."""

from __future__ import annotations

import itertools

import pytest
import torch

from instructkit.config.settings import TowersConfig
from instructkit.evaluation.generate import generate_texts
from instructkit.models.towers import prepare_towers
from instructkit.prompts.protocols import Decoding
from tests.models.test_instruct_blip import PROMPTS, batch
from tests.tiny import tiny_model

TYPES = (torch.float32, torch.bfloat16, torch.float16)


def in_precisions(model, vision, qformer, llm):
    model.vision_model.to(vision)
    model.qformer.to(qformer)
    model.language_projection.to(qformer)
    model.query_tokens.data = model.query_tokens.data.to(qformer)
    model.language_model.to(llm)
    return model


@pytest.mark.parametrize("llm", ["llama", "t5", "opt"])
@pytest.mark.parametrize("precisions", list(itertools.product(TYPES, repeat=3)), ids=str)
def test_towers_of_any_precisions_learn_and_answer_alike(llm, precisions):
    model, texts = tiny_model(llm)
    inputs = batch(texts)
    prepare_towers(model.eval(), TowersConfig())
    plain = model(**inputs)
    plain.total.backward()
    expected = model.query_tokens.grad.clone()
    model.zero_grad()
    in_precisions(model, *precisions)
    answer = model(**inputs)
    answer.total.backward()
    assert answer.total.dtype == torch.float32
    torch.testing.assert_close(answer.rows, plain.rows, atol=0.1, rtol=0.02)
    torch.testing.assert_close(
        model.query_tokens.grad.float(), expected, atol=0.05 * float(expected.abs().max()), rtol=0
    )
    rows = texts.prefixes(texts.encode(PROMPTS[:2]), [1, 1])
    mask = rows.pop("attention_mask")
    sharing = {"image_index": torch.tensor([0, 0]), "image_rows": torch.tensor([0, 1])}
    with torch.no_grad():
        embeds = model.prefix(pixel_values=inputs["pixel_values"][:1], **sharing, **rows)
        written = generate_texts(model.language_model, texts.llm, embeds, mask, Decoding(num_beams=2, max_new_tokens=4))
    assert len(written) == 2
