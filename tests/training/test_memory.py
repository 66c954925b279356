"""What training holds and saves: of what is trained everything, of what is frozen the weight alone, once."""

from __future__ import annotations

import json

import pytest

from tests.training.mini import launch

SCRIPT = """
import gc, json, sys
from pathlib import Path
import torch
from instructkit.models.batches import share_images
from instructkit.config.settings import TrainingConfig
from instructkit.prompts.templates import Prompt
from instructkit.training.checkpoints import save_checkpoint
from instructkit.training.data import Batch
from instructkit.training.engine import Engine
from instructkit.training.objectives import AnswerObjective
from instructkit.runs.ranks import start_ranks
from tests.tiny import tiny_model

def held(dtype):
    sizes = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.dtype == dtype:
            storage = thing.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes() // thing.element_size()
    return sum(sizes.values())

def count(stage, precision, folder):
    model, texts = tiny_model()
    model.requires_grad_(False)
    model.language_projection.requires_grad_(True)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    settings = TrainingConfig(precision=precision, zero_stage=stage, warmup_steps=0)
    engine = Engine(model, AnswerObjective(), settings, folder)
    prompts = [Prompt("a/b/0", "t", "what color is the shape?", "red", ["0"])]
    distinct, sharing = share_images([prompt.images for prompt in prompts])
    inputs = {"pixel_values": torch.randn(1, 3, 16, 16), **sharing, **texts.rows(texts.encode(prompts), [1])}
    for number in range(2):
        engine.step(number, [Batch(inputs, ["a/b/0"], ["a"])])
    del inputs
    gc.collect()
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    state = [t for entry in optimizer.state.values() for t in entry.values() if torch.is_tensor(t) and t.ndim]
    checkpoint = save_checkpoint(engine.deepspeed, folder / f"{stage}-{precision}", 2, {}, 1)
    return {
        "trained": trained,
        "frozen": frozen,
        "float32": held(torch.float32),
        "state": sum(t.numel() for t in state),
        "gradients": sum(p.grad is not None for p in engine.model.parameters() if not p.requires_grad),
        "checkpoint": sum(f.stat().st_size for f in (checkpoint / "state").iterdir()),
        "dtypes": sorted({str(p.dtype) for p in engine.model.parameters() if not p.requires_grad}),
    }

start_ranks()
runs = [(0, "fp32"), (0, "bf16"), (2, "bf16"), (3, "fp32"), (3, "bf16")]
print(json.dumps({f"{stage}-{precision}": count(stage, precision, Path(sys.argv[1])) for stage, precision in runs}))
"""


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    script = folder / "script.py"
    script.write_text(SCRIPT)
    return json.loads(launch(1, script, [str(folder)]).splitlines()[-1])


@pytest.mark.parametrize("run", ["0-bf16", "2-bf16"])
def test_frozen_weights_have_no_float32_copy(counts, run):
    held = counts[run]
    assert held["frozen"] > 50 * held["trained"]
    # Weights, gradients and Adam's two moments of what is trained; buffers such as positions and a rotary table.
    assert held["trained"] * 3 <= held["float32"] <= held["trained"] * 8 + 2000, held
    assert "torch.bfloat16" in held["dtypes"]


@pytest.mark.parametrize("run", ["0-fp32", "0-bf16", "2-bf16", "3-fp32", "3-bf16"])
def test_frozen_weights_cost_no_optimizer_state_no_gradient_and_no_byte_of_a_checkpoint(counts, run):
    held = counts[run]
    assert 2 * held["trained"] <= held["state"] <= 2 * held["trained"] + 64, held
    assert held["gradients"] == 0
    # Two moments and two copies of what is trained, 4 bytes each, and the files' own structure.
    assert held["trained"] * 8 < held["checkpoint"] < held["trained"] * 16 + 60_000, held
    assert held["frozen"] * 2 > 1.5 * held["checkpoint"]
