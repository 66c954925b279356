"""Operations counted from shapes against those that PyTorch counts while they are done."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from instructkit.config.settings import ModelConfig, ThroughputConfig, TowersConfig
from instructkit.models.instruct_blip import InstructBlip
from instructkit.models.load.join import join
from instructkit.models.towers import prepare_towers
from instructkit.training.flops import FlopCount, llm_work, matmul_peak
from tests.models.checkpoints import ENCODERS, write_encoder, write_instructblip
from tests.models.decoders import TOKENS, tiny
from tests.models.test_joining import pixels_for, tokenizers
from tests.tiny import tiny_model
from tests.training.test_meter import inputs

OFF = {"share_images": False, "share_keys": False, "packing": False, "answers_only": False}
PAPER, LORA = {}, {"vision": "lora", "qformer": "lora", "llm": "lora"}
FULL = {"vision": "full", "qformer": "full", "llm": "full"}


@pytest.mark.parametrize(
    ("llm", "towers", "throughput"),
    [
        ("llama", PAPER, {}),
        ("llama", PAPER, OFF),
        ("llama", LORA, {}),
        ("llama", FULL, {}),
        ("llama", {"qformer": "frozen", "llm": "lora"}, {}),
        ("opt", PAPER, {}),
        ("t5", PAPER, {}),
        ("t5", FULL, OFF),
        ("t5", LORA, {}),
    ],
)
def test_the_count_is_that_of_pytorch(llm, towers, throughput):
    model, texts = tiny_model(llm)
    prepare_towers(model, TowersConfig(**towers))
    model.throughput = ThroughputConfig(**throughput)
    compare(model, inputs(texts))


def compare(model, batch):
    # Written out, attention is made of products that PyTorch counts.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.answer_loss(**batch).total.backward()
    mine = FlopCount(model).count(batch, llm_work(model, batch))
    assert mine == pytest.approx(counter.get_total_flops(), rel=0.05)


@pytest.mark.parametrize("family", [*ENCODERS])
def test_an_encoder_of_every_family_is_counted(family, tmp_path):
    parts = {"name": write_instructblip(tmp_path / "blip"), "vision": write_encoder(tmp_path / "encoder", family)}
    model, texts = join(ModelConfig(**{name: str(place) for name, place in parts.items()}), torch.float32, tokenizers)
    prepare_towers(model, TowersConfig())
    compare(model.eval(), pixels_for(model, inputs(texts)))


@pytest.mark.parametrize("kind", ["gpt2", "mamba", "mixtral", "gpt_oss", "deepseek_v3"])
def test_an_llm_of_every_kind_is_counted(kind):
    base, texts = tiny_model()
    config = deepcopy(base.config)
    config.text_config, config.image_token_index = tiny(kind).config, 999
    model = InstructBlip(config)
    prepare_towers(model, TowersConfig())
    batch = inputs(texts)
    image = batch["input_ids"] == base.config.image_token_index
    batch["input_ids"] = (batch["input_ids"] % TOKENS).masked_fill(image, 999)
    batch["labels"] = batch["labels"].where(batch["labels"] < 0, batch["labels"] % TOKENS)
    compare(model, batch)


def test_the_peak_is_a_speed():
    assert 1e8 < matmul_peak(torch.device("cpu"), torch.float32) < 1e14
