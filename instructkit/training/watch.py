"""What is looked at while a run trains, every `evaluation.every` steps: losses on held-in examples, benchmarks.

The same examples every time, drawn by the run's seed. Looking changes nothing: a run that is watched has the same
losses, bit for bit, as one that is not.

    validation_loss            mean loss of a target token over all of `evaluation.validation`
    validation_loss/<split>    the same of one of several
    watch/<benchmark>          score of a benchmark of `evaluation.watch`, 0 to 100 (CIDEr times 100)
    watch_mean                 mean of several
    best_step                  where the run's best was reached so far
"""

from __future__ import annotations

import shutil
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import nn

from instructkit.config.settings import RunConfig
from instructkit.errors import UserError
from instructkit.evaluation.answer import Evaluator
from instructkit.evaluation.benchmark import Task, answer_benchmark, make_task
from instructkit.evaluation.questions import Question
from instructkit.evaluation.score import NotEvaluated, cut_phrase, score
from instructkit.evaluation.select import Wanted, wanted_benchmarks
from instructkit.models.batches import Texts
from instructkit.models.instruct_blip import InstructBlip
from instructkit.models.towers import set_modes
from instructkit.runs.log import RunLog
from instructkit.runs.ranks import Ranks, current_ranks, sum_over_ranks
from instructkit.runs.waiting import first_on_machine, on_first_rank
from instructkit.training.best import MEAN, VALIDATION, Best, score_of
from instructkit.training.data import Part, TrainingData
from instructkit.training.datasets import parts_of, refuse_retrieval
from instructkit.training.engine import Engine
from instructkit.training.objectives import Objective


class Watch:
    """Evaluations of a model in training.

    Args:
        config: of the run.
        engine: what trains.
        texts: tokenisers.
        log: where values go.

    Raises:
        UserError: nothing to look at is named, a split is not there, or its answers are hidden.
    """

    def __init__(self, config: RunConfig, engine: Engine, texts: Texts, log: RunLog) -> None:
        self._settings, self._steps = config.evaluation, config.training.max_steps
        self._engine, self._log = engine, log
        # Benchmarks cut texts as the evaluation at the end does, whatever training cuts them to.
        self._texts = Texts(texts.llm, texts.qformer, engine.model.config)
        self._ranks = current_ranks()
        watched = first_on_machine(lambda: _watched(config))
        self.best = Best(config.evaluation, [each.protocol.benchmark for each in watched])
        self._parts: list[HeldIn] = []
        self._tasks: list[Task] = []
        if config.evaluation.every:
            image_size = engine.model.config.vision_config.image_size
            for part in parts_of(config, config.evaluation.validation):
                self._parts.append(HeldIn(part, texts, image_size, config, self._ranks, engine.objective))
            self._tasks = first_on_machine(lambda: [_task(config, each) for each in watched])
            self._warn()

    def look(self, step: int) -> None:
        """Evaluate behind a step if one is due, at the end of training too; call on every rank.

        `best` then says whether the model is the best so far, and whether training should stop.
        """
        every = self._settings.every
        if not every or (step % every and step != self._steps):
            return
        began = time.monotonic()
        with at_rest(self._engine) as model:
            values = self._losses(model) | self._scores(model, step)
        better = self.best.take(step, values)
        self._log.metrics(step, **values, best_step=self.best.step)
        self._say(step, values, better, time.monotonic() - began)

    def _losses(self, model: nn.Module) -> dict[str, float]:
        sums = {part.name: sum_over_ranks(part.sums(model, self._engine.device)) for part in self._parts}
        values = {}
        if sums:
            values[VALIDATION] = self._loss(list(sums.values()))
        if len(sums) > 1:
            values |= {f"{VALIDATION}/{name}": self._loss([each]) for name, each in sums.items()}
        for name, (*_, cut) in sums.items():
            if cut:
                self._log.say(f"cut       {name}: {cut:,.0f} rows of the validation lost tokens to a limit")
        return values

    def _loss(self, sums: Sequence[Sequence[float]]) -> float:
        """The weighted sum of the means, from what `HeldIn.sums` gave for some datasets."""
        losses = self._engine.objective.losses.values()
        return sum(
            loss.weight * (sum(each[2 * number] for each in sums) / sum(each[2 * number + 1] for each in sums))
            for number, loss in enumerate(losses)
        )

    def _scores(self, model: InstructBlip, step: int) -> dict[str, float]:
        evaluator = Evaluator(model, self._texts)
        scores: dict[str, float] = {}
        for task in self._tasks:
            value = self._score(evaluator, task, step)
            if value is not None:
                scores[score_of(task.question.protocol.benchmark)] = value
        if len(self._tasks) > 1 and len(scores) == len(self._tasks):
            scores[MEAN] = sum(scores.values()) / len(scores)
        return scores

    def _score(self, evaluator: Evaluator, task: Task, step: int) -> float | None:
        """The score of a benchmark, None where it has none; what was answered stays until the next evaluation."""
        on_first_rank(lambda: shutil.rmtree(task.folder, ignore_errors=True))
        log = answer_benchmark(evaluator, task, {"step": step}, ranks=self._ranks, leave=False)
        protocol = task.question.protocol

        def scored() -> float | None:
            outcome = score(protocol, log.answers(), task.plan.available)
            for example, error in outcome.errors.items():
                self._log.say(f"error     {protocol.benchmark} {example}: {error}")
            if outcome.cut:
                self._log.say(f"cut       {protocol.benchmark}: {cut_phrase(outcome.cut)}")
            if isinstance(outcome, NotEvaluated):
                self._log.say(f"evaluate  {protocol.benchmark}: no score: {outcome.reason}")
                return None
            return outcome.value

        return on_first_rank(scored)

    def _say(self, step: int, values: dict[str, float], better: bool, seconds: float) -> None:
        shown = ", ".join(f"{name} {value:.{4 if VALIDATION in name else 2}f}" for name, value in values.items())
        standing = "the best so far" if better else f"the best was at step {self.best.step}"
        self._log.say(f"evaluate  step {step:,}: {shown}, in {seconds:.0f} s; {standing} by {self.best.name}")
        if self.best.exhausted and step < self._steps:
            self._log.say(f"evaluate  training stops: no gain in {self._settings.patience} evaluations")

    def _warn(self) -> None:
        for protocol in (task.question.protocol for task in self._tasks):
            if self.best.name in (score_of(protocol.benchmark), MEAN) and protocol.role == "held-out":
                self._log.say(
                    f"evaluate  {protocol.benchmark} is held out and decides which checkpoint is kept: the model is "
                    f"tuned on it; evaluation.best={VALIDATION} would not be"
                )


class HeldIn:
    """Some examples of a dataset that the run has held in, with one prompt each.

    Args:
        part: the dataset.
        texts: tokenisers.
        image_size: pixels of a side.
        config: of the run.
        ranks: the processes that share the examples out.
        objective: what the model is trained for.
    """

    def __init__(
        self, part: Part, texts: Texts, image_size: int, config: RunConfig, ranks: Ranks, objective: Objective
    ) -> None:
        if not len(part.examples):
            raise UserError(f"evaluation.validation: {part.name} has no examples")
        self.name, self._objective = part.name, objective
        size = config.evaluation.eval_batch_size
        self._data = TrainingData(
            [part],
            texts,
            image_size,
            groups=size,
            seed=config.seed,
            prompt=config.data.prompt,
            prefix=config.data.prefix,
            instructions=config.data.instructions,
        )
        mine = range(ranks.rank, min(config.evaluation.watch_limit, len(part.examples)), ranks.world)
        self._batches = [mine[start : start + size] for start in range(0, len(mine), size)]

    @torch.no_grad()
    def sums(self, model: nn.Module, device: torch.device) -> list[float]:
        """Of this rank's share: total and count of each loss in turn, then the number of rows that a limit cut."""
        found = {name: [0.0, 0] for name in self._objective.losses}
        cut = 0
        dtype = next(model.parameters()).dtype
        for positions in self._batches:
            batch = self._data.batch(positions)
            batch.inputs["pixel_values"] = batch.inputs["pixel_values"].to(dtype)
            for name, each in self._objective(model, batch.to(device)).items():
                found[name][0] += float(each.total)
                found[name][1] += each.count
            cut += sum(map(bool, batch.cut))
        return [*(number for pair in found.values() for number in pair), cut]


@contextmanager
def at_rest(engine: Engine) -> Iterator[Any]:
    """The model in evaluation mode, its weights whole on every rank; afterwards it trains on as it was.

    Each rank goes its own pace inside, so none may wait for the others to call as often as it does.
    """
    model, sharded = engine.model, engine.config.zero_stage == 3
    in_step, model.most_calls = getattr(model, "most_calls", int), int
    with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=sharded), _no_hooks(model, sharded):
        model.eval()
        try:
            yield model
        finally:
            set_modes(model, training=True)
            model.most_calls = in_step


@contextmanager
def _no_hooks(model: nn.Module, sharded: bool) -> Iterator[None]:
    """Keep ZeRO 3 from fetching weights layer by layer: ranks do not generate in step and would wait for each other."""
    kinds = ("_forward_pre_hooks", "_forward_hooks") if sharded else ()
    modules: list[Any] = list(model.modules())
    before = [(module, kind, getattr(module, kind)) for module in modules for kind in kinds]
    for module, kind, _ in before:
        setattr(module, kind, OrderedDict())
    try:
        yield
    finally:
        for module, kind, hooks in before:
            setattr(module, kind, hooks)


def _watched(config: RunConfig) -> list[Wanted]:
    root = Path(config.data.root)
    asked = config.evaluation
    return wanted_benchmarks(asked.watch, root, asked.prompts) if asked.watch else []


def _task(config: RunConfig, wanted: Wanted) -> Task:
    name = wanted.protocol.benchmark
    if wanted.hidden:
        raise UserError(f"evaluation.watch: {name} has no answers to compare with")
    refuse_retrieval(wanted.protocol)
    return make_task(
        Question(wanted.protocol),
        Path(config.data.root),
        Path(config.output) / "watch" / name.replace("/", "-"),
        limit=config.evaluation.watch_limit,
        batch_size=config.evaluation.eval_batch_size,
        seed=config.seed,
    )
