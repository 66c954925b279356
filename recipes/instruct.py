"""Instruction-tune an InstructBLIP and evaluate it: the main job.

    deepspeed recipes/instruct.py [--config recipes/configs/easy_vqa.yaml] [key=value ...]

What it does, and the settings that govern it (`instructkit/config/settings.py` explains every one):
    data        converts releases that come as a package, checks that the others are converted     data.*
    model       a preset from random weights, a folder, a published size, or parts of several        model.*
    towers      image encoder, Q-Former and LLM, each frozen, trained by LoRA, or in full            towers.*
    training    DeepSpeed with ZeRO 0 to 3, AdamW or Muon, warm-up and cosine, bf16 or fp32, gradient
                accumulation and clipping; checkpoints of what is trained; resume=true goes on      training.*
    throughput  what a step leaves out without changing its loss; features of images on disk            throughput.*
    evaluation  benchmarks by protocol, then runs/<name>/report/report.{json,md,html}                    evaluation.*
Same seed, same losses, on one rank and on several, up to rounding. Dropout is the exception: it is drawn by rank and
micro-batch, so that a model with dropout (the published Q-Former has 0.1) has other losses where its batches are split
otherwise. With resume=true a larger max_steps lengthens a finished run, and at ZeRO 0 other ranks may go on.
"""

from __future__ import annotations

from instructkit.config.conflicts import check_recipe
from instructkit.config.read import load_config
from instructkit.config.settings import RunConfig
from instructkit.runs.start import start

CONFIG = start(__name__, __doc__, RunConfig, load_config, default="easy_vqa")  # before torch is loaded

from instructkit.evaluation.run import evaluate_run
from instructkit.models.towers import prepare_towers
from instructkit.reports.once import train_once
from instructkit.runs.run import Run, main
from instructkit.training.before_after import BeforeAfter
from instructkit.training.data import TrainingData
from instructkit.training.datasets import parts_of
from instructkit.training.engine import Engine, free_memory
from instructkit.training.length import say_mixture
from instructkit.training.loop import Loop
from instructkit.training.model import prepare_model, save_run_model, warn_of_random
from instructkit.training.objectives import AnswerObjective
from instructkit.training.prepare import prepare_run
from instructkit.training.watch import Watch


def instruct(run: Run[RunConfig]) -> None:
    """Convert, train, evaluate, report."""
    check_recipe(run.config, "instruct")
    config = prepare_run(run)

    def work() -> None:
        train(run)
        free_memory()  # a second model is loaded
        evaluate_run(config, run.folder, run.say)

    train_once(run, work)


def train(run: Run[RunConfig]) -> None:
    """Train to `max_steps` and save the model to `folder/model`."""
    config = run.config
    parts = parts_of(config, config.data.train)
    model, texts = prepare_model(config, parts, run.folder, run.say)
    prepare_towers(model, config.towers, config.seed)
    warn_of_random(run, model)
    data = TrainingData.for_run(run, parts, model, texts)
    say_mixture(run, data.mixture)
    engine = Engine(model, AnswerObjective(), config.training, run.folder)
    before_after = BeforeAfter(config, engine, texts)
    watch = Watch(config, engine, texts, run.log)
    loop = Loop(run, engine, data, watch.best)
    for step in loop:  # restored, timed, logged and kept by the loop
        watch.look(step.number)
    loop.finish()
    before_after.finish(run.folder)
    save_run_model(config, engine, texts, run.folder / "model")
    engine.free()


if __name__ == "__main__":
    main(instruct, CONFIG, CONFIG.output, CONFIG.project)
