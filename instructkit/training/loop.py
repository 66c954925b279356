"""The optimizer steps of a run: restored, timed, counted, logged and kept, whatever model and objective take them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import yaml
from tqdm import tqdm

from instructkit.config.settings import RunConfig, to_dict
from instructkit.files import reading, write_atomically
from instructkit.models.towers import set_modes, trained_and_frozen
from instructkit.runs.log import step_line
from instructkit.runs.run import Run
from instructkit.training.best import Best
from instructkit.training.checkpoints import COMPLETE, last_checkpoint, load_best, load_checkpoint, save_checkpoint
from instructkit.training.data import Batch
from instructkit.training.engine import Engine, Step
from instructkit.training.identity import checkpoint_facts
from instructkit.training.meter import Meter
from instructkit.training.optimizers import optimizer_name


class Batches(Protocol):
    """Where a loop's micro-batches come from (`instructkit.training.data.TrainingData`)."""

    @property
    def names(self) -> Sequence[str]:
        """The datasets."""

    @property
    def samples_per_group(self) -> float:
        """Examples that an image group holds, on average."""

    def loader(self, start: int, stop: int, workers: int = 0) -> Iterator[Batch]:
        """Micro-batches `start` to `stop` of this rank."""


class Loop:
    """The optimizer steps of a run, from where it stands to its last one.

        loop = Loop(run, engine, data, watch.best)
        for step in loop:
            watch.look(step.number)
        loop.finish()

    With `resume=true` it goes on from the last checkpoint. A step is timed and counted, and every `log_every` steps the
    log gets a line. When the body of the `for` is done with a step, a checkpoint is written if one is due, if the step
    is the best so far, or if it is the last: by number, without a gain for too long, or because a signal asks the run
    to end.

    Args:
        run: settings, folder, log.
        engine: what takes the steps.
        data: what they read.
        best: of the evaluations; whoever evaluates updates it.

    Attributes:
        done: number of steps that are done.
    """

    def __init__(self, run: Run[RunConfig], engine: Engine, data: Batches, best: Best) -> None:
        self._run, self._engine, self._data, self.best = run, engine, data, best
        self._settings = run.config.training
        self._checkpoints = run.folder / "checkpoints"
        self._facts = checkpoint_facts(run.config, run.world)
        self._meter = Meter(engine.objective, engine.model, data.names, engine.device)
        self.done = self._restore()
        if run.first:
            write_atomically(run.folder / "config.yaml", yaml.safe_dump(to_dict(run.config), sort_keys=False))
        for line in self._resolved():
            run.say(line)

    @property
    def over(self) -> bool:
        """Whether no step follows."""
        return self.done >= self._settings.max_steps or self.best.exhausted

    def __iter__(self) -> Iterator[Step]:
        """Take the steps; every rank does."""
        run, settings = self._run, self._settings
        set_modes(self._engine.model, training=True)
        first, last = (steps * settings.accumulation for steps in (self.done, settings.max_steps))
        batches = iter(self._data.loader(first, last, run.config.data.workers))
        with run.finishing_steps(), self._bar() as bar:
            while not self.over:
                with self._meter.timed():
                    micro = islice(batches, settings.accumulation)
                    step = self._engine.step(self.done, micro, run.config.seed, self._meter.add)
                self.done = step.number
                bar.set_postfix(step=step.number, loss=f"{step.loss:.4f}", refresh=False)
                bar.update(step.samples)
                if self._due(settings.log_every) or step.number == settings.max_steps:
                    self._log(step)
                yield step
                stop = run.stop_asked()
                if self._due(settings.checkpoint_every) or self.best.step == self.done or self.over or stop:
                    self._save()
                if stop:
                    run.stop(f"stopped   behind step {self.done:,}: resume=true goes on from there")

    def finish(self) -> None:
        """Put the weights of the best step in place of the last one's, if evaluations chose one."""
        if self.best.step is not None:
            load_best(self._engine.deepspeed, self._checkpoints, self.best.step, self._facts)
            self._run.say(f"model     that of step {self.best.step:,}, the best by {self.best.name}")

    def _due(self, every: int) -> bool:
        return bool(every) and self.done % every == 0

    def _log(self, step: Step) -> None:
        values = {**step.values(), **self._meter.read()}
        self._run.log.metrics(step.number, **values)
        self._run.say(step_line(step.number, self._settings.max_steps, values))

    def _save(self) -> None:
        save_checkpoint(
            self._engine.deepspeed,
            self._checkpoints,
            self.done,
            self._facts,
            self._settings.keep_checkpoints,
            {"meter": self._meter.state(), "best": self.best.state()},
            self.best.step,
        )

    def _restore(self) -> int:
        """Load the last checkpoint if the run goes on from one; the number of steps done."""
        run = self._run
        checkpoint = None
        if run.config.resume:
            checkpoint = last_checkpoint(self._checkpoints, run.say)
            if checkpoint is None:
                run.say(f"resume    no checkpoint in {self._checkpoints}: starting at step 0")
        if checkpoint is None:
            run.log.rewind(0)
            return 0
        done, progress = load_checkpoint(self._engine.deepspeed, checkpoint, self._facts, run.say)
        run.log.rewind(done)
        run.say(f"resume    going on from {checkpoint}")
        with reading(checkpoint / COMPLETE, "remove the checkpoint to go on from the one before"):
            self._go_on(done, progress)
        return done

    def _go_on(self, done: int, progress: dict[str, Any]) -> None:
        """Take up the sums and the best step that a checkpoint holds."""
        evaluation = self._run.config.evaluation
        self._meter.restore(progress["meter"])
        if not self.best.restore(progress["best"]) and evaluation.every:
            self._run.say("evaluate  other settings than before: the best so far is forgotten")
        if self.best.exhausted and done < self._settings.max_steps:
            self._run.say(
                f"evaluate  no step is done: no gain in the last {evaluation.patience} evaluations; a larger patience "
                f"goes on"
            )

    def _bar(self) -> Any:
        total = round(self._samples_per_step() * (self._settings.max_steps - self.done))
        return tqdm(total=total, unit=" samples", desc="train", disable=not self._run.first)

    def _samples_per_step(self) -> float:
        return self._data.samples_per_group * self._settings.batch_size

    def _resolved(self) -> Iterator[str]:
        """What the settings came to, for the log."""
        settings, world, samples = self._settings, self._run.world, self._samples_per_step()
        for name, (trained, frozen) in trained_and_frozen(self._engine.model).items():
            yield f"model     {name:<15} {trained:>13,} trained {frozen:>15,} frozen"
        yield (
            f"training  {settings.max_steps:,} steps of {settings.batch_size} image groups, about {samples:.0f} "
            f"samples ({world} rank{'s' if world > 1 else ''}, {settings.accumulation} micro-batch each): "
            f"{samples * settings.max_steps:,.0f} samples in all"
        )
        own = "".join(f", {tower} {rate:g}" for tower, rate in settings.rates.items())
        decay = f", times {settings.layer_decay:g} a layer of the image encoder" if settings.layer_decay < 1 else ""
        yield f"optimizer {optimizer_name(settings)}, learning rate up to {settings.learning_rate:g}{own}{decay}"
        if os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE":
            yield "cores     threads sleep while they wait for each other (OMP_WAIT_POLICY=PASSIVE)"
        yield (
            f"device    {self._engine.device}, {settings.precision}, ZeRO {settings.zero_stage}, "
            f"seed {self._run.config.seed}"
        )
