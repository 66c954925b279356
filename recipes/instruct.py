"""Instruction-tune an InstructBLIP and evaluate it: the main job.

    deepspeed recipes/instruct.py [--config recipes/configs/easy_vqa.yaml] [key=value ...]

What it does, and the settings that govern it (`instructkit/config.py` explains every one):
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

import os
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from instructkit.config import RunConfig, load_config
from instructkit.runs.start import start

CONFIG = start(__name__, __doc__, RunConfig, load_config, default="easy_vqa")  # before torch is loaded

import yaml
from tqdm import tqdm

from instructkit.config import to_dict
from instructkit.errors import UserError
from instructkit.evaluation.run import evaluate_run
from instructkit.models.batches import Texts
from instructkit.models.load.trained import save_trained
from instructkit.models.packing import packing_note
from instructkit.models.positions import positions_of
from instructkit.models.save import save_model
from instructkit.models.towers import merge_lora, prepare_towers, set_modes, trained_and_frozen, without_lora
from instructkit.reports.report import finished_report, last_lines, write_report
from instructkit.runs.log import RunLog, step_line
from instructkit.runs.run import Run, main
from instructkit.runs.waiting import meet, on_first_rank
from instructkit.training.checkpoints import last_checkpoint, load_best, load_checkpoint, move_aside, save_checkpoint
from instructkit.training.data import TrainingData
from instructkit.training.deepspeed_config import users_settings
from instructkit.training.engine import Engine, free_memory
from instructkit.training.features import open_cache
from instructkit.training.length import length_warnings, passes, with_steps
from instructkit.training.meter import Meter
from instructkit.training.objectives import AnswerObjective
from instructkit.training.optimizers import optimizer_name
from instructkit.training.setup import (
    check_media,
    data_digest,
    frozen_warnings,
    media_digests,
    parts_of,
    prepare_data,
    prepare_model,
    splits_of,
    training_splits,
)
from instructkit.training.watch import Watch


def instruct(run: Run[RunConfig]) -> None:
    """Convert, train, evaluate, report."""
    folder = run.folder
    on_first_rank(lambda: prepare_data(run.config, run.say))
    config = run.config = with_steps(run.config)
    on_first_rank(lambda: check_media(config, run.say))
    identity = {
        "config": _identity(config),
        "data": data_digest(config, splits_of(config)),
        "media": on_first_rank(lambda: media_digests(config, run.say)),
    }
    finished = finished_report(folder, identity)
    run.begin(anew=not (finished or config.resume))
    if finished:
        run.say("nothing has changed since the run that lies here; it is not trained again")
    else:
        train(run)
        free_memory()  # a second model is loaded
        evaluate_run(config, folder, run.say)
        on_first_rank(lambda: write_report(config, folder, identity))
    if run.first:
        for line in last_lines(folder):
            run.say(line)
    meet()


def train(run: Run[RunConfig]) -> None:
    """Train to `max_steps` and save the model to `folder/model`."""
    config, folder, rank, world, log = run.config, run.folder, run.rank, run.world, run.log
    settings = config.training
    parts = parts_of(config, config.data.train)
    model, texts = prepare_model(config, parts, folder, log.say)
    prepare_towers(model, config.towers, config.seed)
    model.throughput = config.throughput
    groups = settings.batch_size // (world * settings.accumulation)
    if groups * world * settings.accumulation != settings.batch_size:
        raise UserError(
            f"batch_size={settings.batch_size} cannot be split over {world} ranks and {settings.accumulation} "
            f"micro-batches; make it a multiple of {world * settings.accumulation}"
        )
    data = TrainingData(
        parts,
        texts,
        model.config.vision_config.image_size,
        overrides=config.data.weights,
        groups=groups,
        group_size=config.data.group_size,
        seed=config.seed,
        augment=config.data.augment,
        rank=rank,
        world=world,
        cache=open_cache(config, model),
        llm_positions=positions_of(model.language_model),
    )
    for line in data.check_pictures():
        log.say(line)
    engine = Engine(model, AnswerObjective(), settings, folder)
    facts = {"settings": _settings(config), "data": data_digest(config, training_splits(config)), "ranks": world}
    meter = Meter(engine.objective, engine.model, data.mixture.names, engine.device)
    watch = Watch(config, engine, texts, log)
    start, progress = _start(config, folder, engine, facts, log)
    if progress:
        meter.restore(progress["meter"])
        watch.restore(progress["best"])
        if watch.best.exhausted and start < settings.max_steps:
            log.say(
                f"evaluate  no step is done: no gain in the last {config.evaluation.patience} evaluations; a larger "
                f"patience goes on"
            )
    for line in _resolved(config, engine, data, world):
        log.say(line)
    for line in [*length_warnings(config, data.mixture), *frozen_warnings(config, engine.model)]:
        log.warn(line)
    if rank == 0:
        (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(config), sort_keys=False))

    set_modes(engine.model, training=True)
    batches = iter(
        data.loader(start * settings.accumulation, settings.max_steps * settings.accumulation, config.data.workers)
    )
    per_step = data.mixture.examples_per_group * settings.batch_size
    with tqdm(
        total=round(per_step * (settings.max_steps - start)), unit=" samples", desc="train", disable=rank > 0
    ) as bar:
        for number in takewhile(lambda number: not watch.best.exhausted, range(start, settings.max_steps)):
            with meter.timed():
                step = engine.step(number, islice(batches, settings.accumulation), config.seed, meter.add)
            bar.set_postfix(step=number + 1, loss=f"{step.loss:.4f}", refresh=False)
            bar.update(step.samples)
            last = number + 1 == settings.max_steps
            if (number + 1) % settings.log_every == 0 or last:
                values = {**step.values(), **meter.read()}
                log.metrics(number + 1, **values)
                log.say(step_line(number + 1, settings.max_steps, values))
            better = watch.look(number + 1)
            due = settings.checkpoint_every and (number + 1) % settings.checkpoint_every == 0
            if better or due or last or watch.best.exhausted:
                save_checkpoint(
                    engine.deepspeed,
                    folder / "checkpoints",
                    number + 1,
                    facts,
                    settings.keep_checkpoints,
                    {"meter": meter.state(), "best": watch.best.state()},
                    watch.best.step,
                )
    if watch.best.step is not None:
        load_best(engine.deepspeed, folder / "checkpoints", watch.best.step, facts)
        log.say(f"model     that of step {watch.best.step:,}, the best by {watch.best.name}")
    _save(config, engine, texts, folder / "model", rank)
    engine.free()


def _save(config: RunConfig, engine: Engine, texts: Texts, folder: Path, rank: int) -> None:
    """Write the model; of one that came from checkpoints only what was not in them, beside their names."""
    towers = (config.towers.vision, config.towers.qformer, config.towers.llm)
    if (config.model.name == "nano" and not config.model.joined) or set(towers) == {"full"}:
        merge_lora(engine.model)
        state = without_lora(engine.gathered_state())
        if rank == 0:
            save_model(engine.model, texts, folder, state)
    else:
        state = engine.gathered_state(trained_only=True)
        if rank == 0:
            save_trained(folder, engine.model, state, config.model, config.towers, texts)


def _start(
    config: RunConfig, folder: Path, engine: Engine, facts: dict[str, Any], log: RunLog
) -> tuple[int, dict[str, Any]]:
    """Steps done already and what else is known of them.

    Checkpoints of an earlier run are moved aside unless this one goes on from them.
    """
    if not config.resume:
        if (moved := move_aside(folder)) is not None:
            log.say(
                f"resume    an earlier run's checkpoints lie in {moved} now; resume=true would have gone on from them"
            )
        log.rewind(0)
        return 0, {}
    checkpoint = last_checkpoint(folder / "checkpoints", log.say)
    if checkpoint is None:
        log.say(f"resume    no checkpoint in {folder / 'checkpoints'}: starting at step 0")
        log.rewind(0)
        return 0, {}
    done, progress = load_checkpoint(engine.deepspeed, checkpoint, facts, log.say)
    log.rewind(done)
    log.say(f"resume    going on from {checkpoint}")
    return done, progress


def _settings(config: RunConfig) -> dict[str, Any]:
    """The settings that a run may not change when it goes on: those that a step's loss depends on."""
    free = {
        "training": ("log_every", "checkpoint_every", "keep_checkpoints", "activation_checkpointing"),
        "data": ("root", "raw", "workers"),
    }
    settings = {name: value for name, value in _identity(config).items() if name != "evaluation"}
    for group, names in free.items():
        settings[group] = {name: value for name, value in settings[group].items() if name not in names}
    return settings


def _identity(config: RunConfig) -> dict[str, Any]:
    """The settings that a result depends on; a DeepSpeed file counts by its content."""
    settings = {key: value for key, value in to_dict(config).items() if key not in ("output", "resume", "project")}
    settings["training"]["deepspeed"] = users_settings(config.training)
    del settings["training"]["epochs"]  # max_steps says it
    return settings


def _resolved(config: RunConfig, engine: Engine, data: TrainingData, world: int) -> list[str]:
    """What the settings came to, for the first lines of the log."""
    lines = [
        f"model     {name:<15} {trained:>13,} trained {frozen:>15,} frozen"
        for name, (trained, frozen) in trained_and_frozen(engine.model).items()
    ]
    settings = config.training
    samples = data.mixture.examples_per_group * settings.batch_size
    widest = max(15, *map(len, data.mixture.names))
    counts = passes(config, data.mixture)
    for name, chance in data.mixture.probabilities.items():
        lines.append(
            f"mixture   {name:<{widest}} {data.mixture.sizes[name]:>13,} examples   probability {chance:.4f}   "
            f"{counts[name]:,.2f} passes"
        )
    lines.append(
        f"training  {settings.max_steps:,} steps of {settings.batch_size} image groups, about {samples:.0f} samples "
        f"({world} rank{'s' if world > 1 else ''}, {settings.accumulation} micro-batch each): "
        f"{samples * settings.max_steps:,.0f} samples in all"
    )
    llm = engine.model.language_model
    if config.throughput.packing and (note := packing_note(llm, engine.device)) is not None:
        lines.append(note)
    lines.append(f"optimizer {optimizer_name(settings)}, learning rate up to {settings.learning_rate:g}")
    if os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE":
        lines.append("cores     threads sleep while they wait for each other (OMP_WAIT_POLICY=PASSIVE)")
    lines.append(f"device    {engine.device}, {settings.precision}, ZeRO {settings.zero_stage}, seed {config.seed}")
    return lines


if __name__ == "__main__":
    main(instruct, CONFIG, CONFIG.output, CONFIG.project)
