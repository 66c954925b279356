"""Pre-train a Q-Former on pictures with captions: BLIP-2's first stage, in front of an image encoder, without an LLM.

    deepspeed recipes/pretrain_qformer.py [--config recipes/configs/stage1_world.yaml] [key=value ...]

What it does, and the settings that govern it (`instructkit/config/settings.py` explains every one):
    data        sources of captions; a step reads one caption of a picture                              data.*
    model       image encoder and Q-Former: from BERT with the queries' feed-forwards copied, from random
                weights, or from an earlier first stage                                                 model.*
    towers      image encoder and Q-Former, each frozen, trained by LoRA, or in full                    towers.*
    training    DeepSpeed with ZeRO 0 to 2; batch_size pairs a step, which are all compared with each other over
                all ranks, so accumulation stays 1                                                      training.*
    throughput  features of images on disk, for a frozen encoder and no crops                           throughput.*
The losses are those of the paper, with equal weights: ITC compares images with texts, ITM judges pairs that ITC takes
for alike, ITG writes the caption. Same seed, same losses, on one rank and on several, up to rounding (dropout 0).
`model.qformer=RUN/model` then takes the Q-Former into the second stage, `Blip2ForImageTextRetrieval` opens the folder.
"""

from __future__ import annotations

from instructkit.config.conflicts import check_recipe
from instructkit.config.read import load_config
from instructkit.config.settings import RunConfig
from instructkit.runs.start import start

CONFIG = start(__name__, __doc__, RunConfig, load_config, default="stage1_world")  # before torch is loaded

from instructkit.models.towers import prepare_towers
from instructkit.reports.once import train_once
from instructkit.runs.run import Run, main
from instructkit.training.best import Best
from instructkit.training.datasets import parts_of
from instructkit.training.engine import Engine
from instructkit.training.length import say_mixture
from instructkit.training.loop import Loop
from instructkit.training.model import (
    check_pretraining,
    prepare_pretraining,
    save_run_pretraining,
    warn_of_random,
)
from instructkit.training.pairs import PairData, pair_mixture
from instructkit.training.prepare import prepare_run
from instructkit.training.pretraining import PretrainingObjective


def pretrain_qformer(run: Run[RunConfig]) -> None:
    """Convert, train, report."""
    check_recipe(run.config, "pretrain_qformer")
    check_pretraining(run.config)
    prepare_run(run, pair_mixture)
    train_once(run, lambda: train(run))


def train(run: Run[RunConfig]) -> None:
    """Train to `max_steps` and save the model to `folder/model`."""
    config = run.config
    parts = parts_of(config, config.data.train)
    model, captions = prepare_pretraining(config, parts, run.folder, run.say)
    prepare_towers(model, config.towers, config.seed)
    warn_of_random(run, model)
    data = PairData.for_run(run, parts, model, captions)
    say_mixture(run, data.mixture, "pictures")
    engine = Engine(model, PretrainingObjective(), config.training, run.folder)
    loop = Loop(run, engine, data, Best(config.evaluation, []))
    for _ in loop:  # restored, timed, logged and kept by the loop
        pass
    save_run_pretraining(engine, captions, run.folder / "model")
    engine.free()


if __name__ == "__main__":
    main(pretrain_qformer, CONFIG, CONFIG.output, CONFIG.project)
