"""What training in bf16 holds in float32: what is trained, and no copy of anything frozen."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.training.mini import environment

SCRIPT = """
import gc, json, sys
from pathlib import Path
import torch
from instructkit.batches import share_images
from instructkit.config import TrainingConfig
from instructkit.prompts import Prompt
from instructkit.training.data import Batch
from instructkit.training.engine import Engine, start_ranks
from tests.tiny import tiny_model

def held(dtype):
    sizes = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.dtype == dtype:
            storage = thing.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes() // thing.element_size()
    return sum(sizes.values())

start_ranks()
model, texts = tiny_model()
model.requires_grad_(False)
model.language_projection.requires_grad_(True)
trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
engine = Engine(model, TrainingConfig(precision="bf16", zero_stage=int(sys.argv[1]), warmup_steps=0), Path(sys.argv[2]))
prompts = [Prompt("a/b/0", "t", "what color is the shape?", "red", ["0"])]
distinct, sharing = share_images([prompt.images for prompt in prompts])
inputs = {"pixel_values": torch.randn(1, 3, 16, 16), **sharing, **texts.rows(texts.encode(prompts), [1])}
losses = [engine.step(number, [Batch(inputs, ["a/b/0"], ["a"])]).loss for number in range(2)]
del inputs
gc.collect()
dtypes = sorted({str(p.dtype) for p in engine.model.parameters() if not p.requires_grad})
print(json.dumps({"trained": trained, "frozen": frozen, "float32": held(torch.float32), "dtypes": dtypes}))
"""


@pytest.mark.parametrize("stage", [0, 2])
def test_frozen_weights_have_no_float32_copy(stage, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(stage), str(tmp_path)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    held = json.loads(done.stdout.splitlines()[-1])
    assert held["frozen"] > 50 * held["trained"]
    # Weights, gradients and Adam's two moments of what is trained; buffers such as positions and a rotary table.
    assert held["trained"] * 3 <= held["float32"] <= held["trained"] * 8 + 2000, held
    assert "torch.bfloat16" in held["dtypes"]
