"""Peak of allocated bytes of training steps on each rank, as PyTorch's allocator reports every allocation.

Started by DeepSpeed's launcher with a file of cases; each line of output that starts with RESULT is one case as JSON.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function

from instructkit.config.read import load_config
from instructkit.config.settings import RunConfig
from instructkit.models.instruct_blip import InstructBlip
from instructkit.models.load.presets import build
from instructkit.models.towers import prepare_towers, set_modes
from instructkit.runs.ranks import start_ranks
from instructkit.training.data import Batch
from instructkit.training.engine import Engine
from instructkit.training.objectives import AnswerObjective
from instructkit.training.plan.estimate import Assumed
from instructkit.training.plan.shapes import rows_on_shapes, shape_of

STEP = "a step that counts"
STEPS = 5


def measured(config: RunConfig, folder: Path) -> int:
    """Bytes allocated at the peak of a step, when the optimizer's state is there: the least of some.

    On a busy machine a thread of the collectives may free later than in other steps what it has sent; it can only add.
    """
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model = build(shape_of(config.model), config.seed)
        prepare_towers(model, config.towers, config.seed)
        model.throughput = config.throughput
        batches = [batch(model, config) for _ in range(config.training.accumulation)]
        engine = Engine(model, AnswerObjective(), config.training, folder)
        set_modes(engine.model, training=True)
        engine.step(0, batches)
        for number in range(STEPS):
            with record_function(STEP):
                engine.step(1 + number, batches)
    events = profiler.profiler.kineto_results.events()
    spans = [(event.start_ns(), event.start_ns() + event.duration_ns()) for event in events if event.name() == STEP]
    assert len(spans) == STEPS
    alive, peaks = 0, [0] * STEPS
    for event in sorted((event for event in events if event.name() == "[memory]"), key=lambda event: event.start_ns()):
        alive += event.nbytes()
        for number, (begin, end) in enumerate(spans):
            if begin <= event.start_ns() <= end:
                peaks[number] = max(peaks[number], alive)
    return min(peaks)


def batch(model: InstructBlip, config: RunConfig) -> Batch:
    """A micro-batch of the lengths that the plan assumes."""
    training = config.training
    groups = training.batch_size // (dist.get_world_size() * training.accumulation)
    inputs = rows_on_shapes(model, groups, Assumed().lengths, config.data.group_size)
    inputs["pixel_values"] = torch.randn(inputs["pixel_values"].shape)
    rows = len(inputs["labels"])
    return Batch(inputs, [""] * rows, [""] * rows)


def main() -> None:
    """Measure every case of the file that the command line ends with."""
    start_ranks()
    cases: dict[str, list[str]] = json.loads(Path(sys.argv[-1]).read_text())
    found: dict[str, Any] = {}
    for name, words in cases.items():
        config = load_config(Path(__file__).with_name("mini.yaml"), words)
        found[name] = measured(config, Path(sys.argv[-1]).parent)
    if dist.get_rank() == 0:
        print("RESULT " + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
