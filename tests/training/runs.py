"""Several runs of recipes in one process group: starting Python and its libraries is what costs.

What the model in memory says when training has ended goes to `logits.pt`. A word `after=NAME:STEP` makes the run go on
from what the run NAME, in the folder beside, had written by that step.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

from instructkit.config.read import load_config
from instructkit.config.settings import RunConfig
from instructkit.errors import UserError
from instructkit.runs.ranks import start_ranks
from instructkit.runs.run import open_run
from instructkit.training import meter
from tests.training.mini import logits

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
MINI = Path(__file__).with_name("mini.yaml")


def recipe(name: str = "instruct") -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def remember_logits(instruct: Any) -> None:
    """Let a run write down what its model says in memory, before anything of it is saved."""
    save = instruct.save_run_model

    def say_and_save(config: Any, engine: Any, texts: Any, folder: Path) -> None:
        said = logits(engine.model, texts)
        if dist.get_rank() == 0:
            torch.save(said, folder.with_name("logits.pt"))
        save(config, engine, texts, folder)

    instruct.save_run_model = say_and_save


def leave_as_of(source: Path, step: int, folder: Path) -> None:
    """What was on the disk when a run was killed behind a checkpoint: log lines may be ahead of it."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("report", "evaluation", "model", "logits.pt"))
    for checkpoint in (folder / "checkpoints").glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)


def train(instruct: ModuleType, words: list[str]) -> None:
    config = next((Path(word) for word in words if word.endswith(".yaml")), MINI)
    output = Path(next(word for word in words if word.startswith("output=")).removeprefix("output="))
    after = next((word.removeprefix("after=") for word in words if word.startswith("after=")), None)
    words = [word for word in words if not word.endswith(".yaml") and not word.startswith("after=")]
    if after is not None:
        name, _, step = after.partition(":")
        if dist.get_rank() == 0:
            leave_as_of(output.with_name(name), int(step), output)
        dist.barrier()
        words.append("resume=true")
    try:
        settings: RunConfig = load_config(config, words)
        module = instruct if settings.recipe == "instruct" else recipe(settings.recipe)
        with open_run(settings, Path(settings.output), settings.project) as run:
            getattr(module, settings.recipe)(run)
    except UserError as error:
        output.mkdir(parents=True, exist_ok=True)
        (output / f"error-{dist.get_rank()}.txt").write_text(str(error))


if __name__ == "__main__":
    start_ranks()
    instruct = recipe()
    remember_logits(instruct)
    meter.matmul_peak = lambda *_: 1e9  # takes seconds in bf16 where the CPU has none
    spec = json.loads(Path(next(word for word in sys.argv[1:] if word.endswith(".json"))).read_text())
    for words in spec.values():
        train(instruct, words)
    dist.destroy_process_group()
