"""What the published sizes train and save, counted on shapes alone."""

from __future__ import annotations

import pytest
import torch

from instructkit.config.settings import TowersConfig
from instructkit.models.instruct_blip import InstructBlip
from instructkit.models.load.presets import PUBLISHED, preset
from instructkit.models.towers import prepare_towers, trained_and_frozen

LLM = {"flan-t5-xl": 2.78e9, "flan-t5-xxl": 11.0e9, "vicuna-7b": 6.74e9, "vicuna-13b": 13.0e9}
"""Parameters of each LLM; FlanT5 has 32,128 x width more where its head is not the embeddings, as in its checkpoint."""


def on_shapes(name: str, **towers: str) -> InstructBlip:
    with torch.device("meta"):
        model = InstructBlip(preset(name))
    prepare_towers(model, TowersConfig(**towers))
    return model


@pytest.mark.parametrize("name", PUBLISHED)
def test_about_188m_parameters_are_trained_and_the_rest_costs_no_checkpoint_byte(name):
    model = on_shapes(name)
    counts = trained_and_frozen(model)
    assert counts["language_model"] == (0, pytest.approx(LLM[name], rel=0.02))
    assert counts["vision_model"][0] == 2 * 1408
    assert counts["vision_model"][1] == pytest.approx(0.986e9, rel=0.02)
    trained = sum(first for first, _ in counts.values())
    assert trained == pytest.approx(188e6, rel=0.02)
    # A checkpoint: bf16 weights, and in fp32 the weights and AdamW's two moments. The saved part: bf16 weights alone.
    whole = 2 * sum(parameter.numel() for parameter in model.parameters())
    checkpoint, saved = trained * (2 + 3 * 4), trained * 2
    assert checkpoint < 2.7e9
    assert saved < 0.39e9
    assert saved / whole < 0.05


def test_lora_on_a_7b_llm_adds_twenty_million():
    counts = trained_and_frozen(on_shapes("vicuna-7b", llm="lora"))
    # rank 8 beside q, k, v, o (4096 x 4096) and gate, up, down (4096 x 11008) of 32 layers
    assert counts["language_model"][0] == 32 * 8 * (4 * (4096 + 4096) + 3 * (4096 + 11_008))
