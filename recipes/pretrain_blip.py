"""Pre-train BLIP, a mixture of encoder and decoder, on pictures with captions; or finetune it on these or questions.

    deepspeed recipes/pretrain_blip.py [--config recipes/configs/pretrain_blip_world.yaml] [key=value ...]

What it does, and the settings that govern it (`instructkit/config/settings.py` explains every one):
    data        sources of captions, of which a step reads one of a picture, or of questions            data.*
    model       image encoder from a ViT, text transformer from BERT, either from random weights, or both from an
                earlier BLIP (model.name); what encoder and decoder share                               model.*
    pairs       the losses: ITC with momentum encoder and queue, ITM with hard negatives, LM            pairs.*
    training    DeepSpeed with ZeRO 0 to 2; batch_size pairs a step, which divide the queue             training.*
The losses are those of the paper, with equal weights: ITC compares images with texts, ITM judges pairs that ITC takes
for alike, LM writes the caption. Same seed, same losses, on one rank and on several, up to rounding (dropout 0).
`instructkit export RUN/model --as captioning|retrieval|vqa` writes what transformers' classes open.
"""

from __future__ import annotations

from instructkit.config.conflicts import check_recipe
from instructkit.config.read import load_config
from instructkit.config.settings import RunConfig
from instructkit.runs.start import start

CONFIG = start(__name__, __doc__, RunConfig, load_config, default="pretrain_blip_world")  # before torch is loaded

from instructkit.models.load.blip_tasks import look_for_blip
from instructkit.reports.once import train_once
from instructkit.runs.run import Run, main
from instructkit.training.best import Best
from instructkit.training.blip import BlipObjective
from instructkit.training.blip_model import check_blip, prepare_blip, save_run_blip
from instructkit.training.datasets import parts_of
from instructkit.training.engine import Engine
from instructkit.training.length import mixture_of, say_mixture
from instructkit.training.loop import Loop
from instructkit.training.model import warn_of_random
from instructkit.training.pairs import PairData, pair_mixture
from instructkit.training.prepare import prepare_run
from instructkit.training.questions import QuestionData


def pretrain_blip(run: Run[RunConfig]) -> None:
    """Convert, train, report."""
    check_recipe(run.config, "pretrain_blip")
    check_blip(run.config)
    answers = "vqa" in run.config.pairs.losses
    prepare_run(run, mixture_of if answers else pair_mixture, look_for_blip)
    train_once(run, lambda: train(run))


def train(run: Run[RunConfig]) -> None:
    """Train to `max_steps` and save the model to `folder/model`."""
    config = run.config
    parts = parts_of(config, config.data.train)
    model, captions = prepare_blip(config, parts, run.folder, run.say)
    warn_of_random(run, model)
    data: PairData | QuestionData
    if "vqa" in config.pairs.losses:
        data = QuestionData.for_run(run, parts, model, captions)
        say_mixture(run, data.mixture)
    else:
        data = PairData.for_run(run, parts, model, captions)
        say_mixture(run, data.mixture, "pictures")
    engine = Engine(model, BlipObjective(config.pairs), config.training, run.folder)
    loop = Loop(run, engine, data, Best(config.evaluation, []))
    for _ in loop:  # restored, timed, logged and kept by the loop
        pass
    save_run_blip(engine, captions, run.folder / "model")
    engine.free()


if __name__ == "__main__":
    main(pretrain_blip, CONFIG, CONFIG.output, CONFIG.project)
