"""Operations counted from shapes against those that PyTorch counts while they are done."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from instructkit.config import ThroughputConfig, TowersConfig
from instructkit.models.towers import prepare_towers
from instructkit.training.flops import FlopCount, llm_work, matmul_peak
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
    batch = inputs(texts)
    # Written out, attention is made of products that PyTorch counts.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.answer_loss(**batch).total.backward()
    mine = FlopCount(model).count(batch, llm_work(model, batch))
    assert mine == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_the_peak_is_a_speed():
    assert 1e8 < matmul_peak(torch.device("cpu"), torch.float32) < 1e14
