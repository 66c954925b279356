"""Several benchmarks of one model; what could not be evaluated is told, not fatal."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from instructkit.config.settings import EvaluationRun, ModelConfig, RunConfig, evaluation_of
from instructkit.data import media_files
from instructkit.data.dataset import MANIFEST, convert_command
from instructkit.errors import UserError
from instructkit.evaluation.answer import Answerer, Evaluator
from instructkit.evaluation.benchmark import Task, answer_benchmark, make_task
from instructkit.evaluation.blip import BlipAnswerer, why_not
from instructkit.evaluation.gallery import FirstStage, retrieve_benchmark
from instructkit.evaluation.generate import generation_note
from instructkit.evaluation.identity import model_identity, responses_identity
from instructkit.evaluation.in_words import InWords
from instructkit.evaluation.questions import Question
from instructkit.evaluation.rank import ranking_note
from instructkit.evaluation.responses import Answer
from instructkit.evaluation.score import (
    NotEvaluated,
    Result,
    Spread,
    cut_of,
    cut_phrase,
    errors_of,
    score,
    value_phrase,
)
from instructkit.evaluation.select import Wanted, wanted_benchmarks
from instructkit.evaluation.spread import wordings
from instructkit.evaluation.submissions import write_submissions
from instructkit.files import read_json, sha256_of, write_atomically
from instructkit.models.batches import Captions, Limits, Texts
from instructkit.models.blip import Blip
from instructkit.models.blip2 import Blip2Pretraining
from instructkit.models.instruct_blip import InstructBlip
from instructkit.models.load.blip_tasks import blip_tasks, open_blip
from instructkit.models.load.look import look_for_model
from instructkit.models.load.of_runs import llm_of
from instructkit.models.load.pretraining import is_pretraining, load_pretraining
from instructkit.models.save import Places, base_places, load_model
from instructkit.prompts.described import read_descriptions
from instructkit.prompts.protocols import Protocol, benchmarks, load_protocol
from instructkit.runs.ranks import Ranks, current_ranks
from instructkit.runs.waiting import first_on_machine, on_first_rank

Say = Callable[[str], None]
InMemory = tuple[InstructBlip, Texts] | tuple[Blip2Pretraining, Captions] | tuple[Blip, Captions]
"""A model that answers, one of BLIP-2's first stage, or a BLIP, and its tokenisers."""
EVALUATION = "evaluation"
RESULTS = "results.json"


class Kind(NamedTuple):
    """What a model is for.

    Attributes:
        first_stage: it is one of BLIP-2's first stage.
        tasks: of a BLIP, what its parts can do; empty for others.
    """

    first_stage: bool
    tasks: tuple[str, ...] = ()


class Able(NamedTuple):
    """A model where it computes.

    Attributes:
        kind: what it is for.
        answerer: answers; None where it answers nothing.
        stage: lets pictures and texts retrieve each other; None where it does not.
    """

    kind: Kind
    answerer: Answerer | None
    stage: FirstStage | None


class Evaluation(msgspec.Struct, kw_only=True):
    """What an evaluation came to; `evaluation/results.json` of a run.

    Attributes:
        settings: what was asked for.
        model: what the model is: SHA-256 over its files, or the hub's commit.
        results: benchmarks that have a score.
        not_evaluated: benchmarks that have none, and why.
        submissions: files for the servers that score hidden answers, relative to the run's folder.
    """

    settings: EvaluationRun
    model: str
    results: list[Result]
    not_evaluated: list[NotEvaluated]
    submissions: list[str] = []


def evaluate(
    settings: EvaluationRun,
    ranks: Ranks,
    say: Say,
    *,
    replace: bool = False,
    loaded: InMemory | None = None,
) -> Evaluation | None:
    """Evaluate a model and write `evaluation/` of the run's folder; all ranks call it.

    Args:
        settings: model, data, benchmarks.
        ranks: the processes that share the batches out.
        say: takes lines for people.
        replace: discard responses of another model or of other settings, instead of an error.
        loaded: the model that the settings name, where it is in memory already, and its tokenisers.

    Returns:
        What it came to; None on other ranks than the first.

    Raises:
        UserError: no such model, benchmark or folder, the run's folder holds responses of something else, or the model
            cannot do any of the benchmarks.
    """
    ranks.wait()  # the first one may have written the model just now
    if not Path(settings.data.root).is_dir():
        raise UserError(f"{settings.data.root}: no such folder with converted datasets")
    evaluation, root = settings.evaluation, Path(settings.data.root)
    chosen = first_on_machine(lambda: wanted_benchmarks(evaluation.benchmarks, root, evaluation.prompts))
    told, kind = settings.model.words is not None, Kind(False)
    if told:
        on_first_rank(lambda: look_for_model(ModelConfig(llm=settings.model.name)))
    elif loaded is None:
        on_first_rank(lambda: look_for_model(settings.model))
        kind = on_first_rank(lambda: _kind(settings.model.name))
    else:
        kind = _able(loaded).kind
    if all(_beyond(each.protocol, kind) for each in chosen):
        raise UserError(f"{chosen[0].protocol.benchmark}: {_beyond(chosen[0].protocol, kind)}")
    without_media = {} if told else on_first_rank(lambda: _without_media(settings, chosen, say))
    if told:
        able = Able(kind, first_on_machine(lambda: _in_words(settings)), None)
    else:
        if loaded is None:
            # Weights of some ten GB take a minute to read for a checksum: one rank does it for all.
            whole = not (kind.first_stage or kind.tasks)
            places = on_first_rank(lambda: base_places(settings.model.name)) if whole else {}
            loaded = first_on_machine(lambda: _load(settings, places, kind))
        able = _able(loaded)
    identity = on_first_rank(lambda: model_identity(settings.model.name))  # of a hub's model known when it was fetched
    if ranks.first:
        say(f"evaluate  {settings.model.name} in {settings.evaluation.dtype}")
        if told:
            say(f"words     the LLM sees no picture; it is told what is in each by {settings.model.words}")
        if settings.model.exchanged:
            say("pictures  exchanged: each question is asked about another picture of its benchmark")
        if settings.evaluation.prompts != "full":
            say(f"asked     by the bare input (prompts={settings.evaluation.prompts})")
    if isinstance(able.answerer, Evaluator):
        for mode, note_of in (("rank", ranking_note), ("generate", generation_note)):
            asked = any(wanted.protocol.mode == mode for wanted in chosen)
            if ranks.first and asked and (note := note_of(able.answerer.language_model)) is not None:
                say(note)
    runner = _Runner(settings, able, identity, ranks, say, replace, without_media)
    outcomes = [runner.evaluate(wanted) for wanted in chosen]
    if not ranks.first:
        return None
    found = Evaluation(
        settings=settings,
        model=runner.model,
        results=[each for each in outcomes if isinstance(each, Result)],
        not_evaluated=[each for each in outcomes if isinstance(each, NotEvaluated)],
        submissions=write_submissions(Path(settings.output), runner.hidden),
    )
    for path in found.submissions:
        say(f"submission {Path(settings.output) / path}")
    folder = Path(settings.output) / EVALUATION
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / RESULTS, msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    return found


def evaluate_run(config: RunConfig, folder: Path, say: Say) -> Evaluation | None:
    """Evaluate the model in `folder/model` on the benchmarks of a training run; all ranks call it.

    Returns:
        What it came to; None on other ranks than the first, or if no benchmark is configured.
    """
    if not config.evaluation.benchmarks:
        return None
    settings = msgspec.structs.replace(evaluation_of(config), output=str(folder))
    return evaluate(settings, current_ranks(), say, replace=True)


def read_evaluation(folder: Path) -> Evaluation:
    """Read what `evaluate` wrote.

    Raises:
        UserError: the folder holds no finished evaluation, or a damaged one.
    """
    path = folder / EVALUATION / RESULTS
    if not path.is_file():
        raise UserError(f"{path}: missing; the folder holds no finished evaluation")
    found: Evaluation = read_json(path, Evaluation, "remove it and evaluate again, which asks no question twice")
    return found


def benchmark_folder(folder: Path, benchmark: str, wording: str | None = None) -> Path:
    """Where the responses to a benchmark of a run lie."""
    place = folder / EVALUATION / benchmark
    return place if wording is None else place / "wordings" / wording


def _kind(name: str) -> Kind:
    tasks = blip_tasks(name)
    return Kind(not tasks and is_pretraining(name), tasks)


def _load(settings: EvaluationRun, places: Places, kind: Kind) -> InMemory:
    """The model where it computes, and its tokenisers."""
    name, dtype = settings.model.name, getattr(torch, str(settings.evaluation.dtype))
    loaded: InMemory
    if kind.tasks:
        loaded = open_blip(name, dtype=dtype)
    elif kind.first_stage:
        loaded = load_pretraining(name, dtype=dtype)
    else:
        loaded = load_model(name, allow_packages=settings.model.allow_packages, places=places, dtype=dtype)
    loaded[0].to(_device())
    return loaded


def _in_words(settings: EvaluationRun) -> InWords:
    """An LLM where it computes, and what it is told of the pictures."""
    descriptions = read_descriptions(Path(str(settings.model.words)))
    llm = llm_of(settings.model.name, getattr(torch, str(settings.evaluation.dtype)))
    llm.loaded.module.to(_device())
    return InWords(llm, descriptions)


def _device() -> str:
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"


def _able(loaded: InMemory) -> Able:
    model, texts = loaded
    if isinstance(model, InstructBlip):
        assert isinstance(texts, Texts)
        return Able(Kind(False), Evaluator(model, texts), None)
    assert isinstance(texts, Captions)
    stage = FirstStage(model.eval(), texts)
    if isinstance(model, Blip2Pretraining):
        return Able(Kind(True), None, stage)
    return Able(Kind(False, model.tasks), BlipAnswerer(model, texts), stage)


def _beyond(protocol: Protocol, kind: Kind) -> str | None:
    """Why a model cannot do a benchmark, and what to do about it; None where it can."""
    if kind.tasks:
        return why_not(protocol, kind.tasks)
    if (protocol.mode == "retrieve") == kind.first_stage:
        return None
    if kind.first_stage:
        retrieving = ", ".join(name for name in benchmarks() if load_protocol(name).mode == "retrieve")
        return (
            "the model is one of BLIP-2's first stage, which has no LLM and answers nothing; name an InstructBLIP or a "
            f"BLIP-2, or benchmarks that it can do: {retrieving}"
        )
    return (
        "images and texts retrieve each other by a model of BLIP-2's first stage or a BLIP, which this one is not; "
        "name a folder that recipes/pretrain_qformer.py wrote, or a Blip2ForImageTextRetrieval such as "
        "Salesforce/blip2-itm-vit-g"
    )


def _without_media(settings: EvaluationRun, chosen: list[Wanted], say: Say) -> dict[str, str]:
    """Benchmarks of which no picture is there, and what to do about it, after a look at the first some hundred.

    Raises:
        UserError: none of those that are converted has pictures.
    """
    found: dict[str, str] = {}
    asked = 0
    for protocol in (each.protocol for each in chosen):
        name = f"{protocol.source}/{protocol.split}"
        folder = Path(settings.data.root) / name
        if not (folder / MANIFEST).is_file():
            continue  # told when its turn comes
        asked += 1
        looked = media_files.look(folder, settings.evaluation.limit)
        if looked.none_there:
            found[protocol.benchmark] = f"{looked.line()}: {convert_command(name, settings.data.root, images=True)}"
        elif looked.missing:
            say(f"data      {name}: {looked.line()}")
    if found and len(found) == asked:
        benchmark, reason = next(iter(found.items()))
        raise UserError(f"{benchmark}: {reason}")
    return found


class _Runner:
    def __init__(
        self,
        settings: EvaluationRun,
        able: Able,
        model: str,
        ranks: Ranks,
        say: Say,
        replace: bool,
        without_media: dict[str, str],
    ) -> None:
        self.settings, self.able, self.model = settings, able, model
        self.ranks, self.say, self.replace = ranks, say, replace
        self.root, self.folder = Path(settings.data.root), Path(settings.output)
        self.hidden: dict[str, list[Answer]] = {}
        self.media: dict[Path, media_files.Stamps] = {}
        self.without_media = without_media

    def evaluate(self, wanted: Wanted) -> Result | NotEvaluated:
        """One benchmark; on other ranks than the first the outcome says nothing."""
        protocol = wanted.protocol
        reason = _beyond(protocol, self.able.kind) or self.without_media.get(protocol.benchmark)
        if self.settings.model.exchanged and protocol.mode == "retrieve":
            reason = "the pictures are what is retrieved, so that they cannot be exchanged"
        if reason is not None:
            return self._without(wanted, reason)
        try:
            task = self._task(Question(protocol), wanted.hidden)
        except UserError as error:
            return self._without(wanted, str(error))
        began = time.monotonic()
        answers = self._answers(task)
        outcome: Result | NotEvaluated
        if not self.ranks.first:
            outcome = self._without(wanted, "told by the first rank")
        elif wanted.hidden:
            self.hidden[protocol.benchmark] = answers
            outcome = self._without(wanted, "its authors keep the answers to themselves and score them on a server")
            outcome.hidden, outcome.errors, outcome.cut = True, errors_of(answers), cut_of(answers)
            self._say_cut(protocol.benchmark, outcome.cut)
        else:
            outcome = score(protocol, answers, task.plan.available)
            self._say(protocol.benchmark, outcome, time.monotonic() - began)
        spread = [] if wanted.hidden else self._spread(task)
        if isinstance(outcome, Result):
            outcome.spread = spread
        return outcome

    def _task(self, question: Question, hidden: bool = False) -> Task:
        name = question.wording.name if question.wording else None
        place = benchmark_folder(self.folder, question.protocol.benchmark, name)
        settings = self.settings
        return first_on_machine(
            lambda: make_task(
                question,
                self.root,
                place,
                limit=settings.evaluation.limit,
                batch_size=settings.evaluation.eval_batch_size,
                hidden=hidden,
                exchanged=settings.model.exchanged,
            )
        )

    def _answers(self, task: Task) -> list[Answer]:
        settings, able = self.settings, self.able
        retrieves = task.question.protocol.mode == "retrieve"
        size = settings.evaluation.eval_batch_size
        identity = responses_identity(
            task.question,
            self.root,
            self.model,
            limit=settings.evaluation.limit,
            batch_size=size,
            dtype=str(settings.evaluation.dtype),
            limits=Limits() if retrieves or able.answerer is None else able.answerer.limits,  # the protocol says it
        )
        if settings.model.words is not None:
            identity["words"] = on_first_rank(lambda: sha256_of(Path(str(settings.model.words))))
        if settings.model.exchanged:
            identity["pictures"] = "exchanged"
        shared: Any = {"ranks": self.ranks, "replace": self.replace, "media": self._stamps(task)}
        if retrieves:
            assert able.stage is not None, "the model can do it"
            log = retrieve_benchmark(able.stage, task, identity, batch_size=size, **shared)
        else:
            assert able.answerer is not None, "the model can do it"
            log = answer_benchmark(able.answerer, task, identity, **shared)
        name = task.question.protocol.benchmark
        if log.damaged:
            self.say(f"evaluate  {name}: {log.damaged:,} lines of {log.path} are damaged; they are answered again")
        if log.replaced:
            self.say(f"media     {name}: pictures of {log.replaced:,} answers were replaced; they are asked again")
        return log.answers() if self.ranks.first else []

    def _stamps(self, task: Task) -> media_files.Stamps:
        """Those of the split's media files, asked for once; the first rank alone compares them."""
        folder = task.examples.folder
        if isinstance(self.able.answerer, InWords) or self.settings.model.exchanged:
            return {}  # no picture is opened, or not the example's own
        if self.ranks.first and folder not in self.media:
            self.media[folder] = media_files.stamps(folder, self.say)
        return self.media.get(folder, {})

    def _spread(self, task: Task) -> list[Spread]:
        """The scores under training wordings."""
        protocol = task.question.protocol
        asked = self.settings.evaluation
        if protocol.mode == "retrieve":
            if asked.spread and self.ranks.first:
                self.say(f"wording   {protocol.benchmark}: nothing is asked, so there are no wordings to spread over")
            return []
        found = []
        for wording in wordings(protocol, task.examples, asked.limit, asked.spread):
            answers = self._answers(self._task(Question(protocol, wording)))
            outcome = score(protocol, answers, task.plan.available) if self.ranks.first else None
            if isinstance(outcome, Result):
                found.append(
                    Spread(
                        wording=wording.name,
                        instruction=wording.instruction,
                        value=outcome.value,
                        n=outcome.n,
                        errors=len(outcome.errors),
                        cut=outcome.cut,
                    )
                )
                self._say_cut(f"{protocol.benchmark} {wording.name}", outcome.cut)
                self.say(f"wording   {protocol.benchmark} {wording.name}: {protocol.metric} {outcome.value:.2f}")
            elif outcome is not None:
                self.say(f"wording   {protocol.benchmark} {wording.name}: no score: {outcome.reason}")
        return found

    def _without(self, wanted: Wanted, reason: str) -> NotEvaluated:
        protocol = wanted.protocol
        if self.ranks.first:
            self.say(f"evaluate  {protocol.benchmark}: no score: {reason}")
        return NotEvaluated(benchmark=protocol.benchmark, title=protocol.title, role=protocol.role, reason=reason)

    def _say_cut(self, name: str, cut: dict[str, int]) -> None:
        if self.ranks.first and cut:
            self.say(f"cut       {name}: {cut_phrase(cut)}")

    def _say(self, name: str, outcome: Result | NotEvaluated, seconds: float) -> None:
        for example, error in outcome.errors.items():
            self.say(f"error     {name} {example}: {error}")
        self._say_cut(name, outcome.cut)
        if isinstance(outcome, NotEvaluated):
            self.say(f"evaluate  {name}: no score: {outcome.reason}")
        else:
            reached = value_phrase(outcome.metric, outcome.value, outcome.details)
            self.say(f"evaluate  {name}: {reached} on {outcome.n:,} examples in {seconds:.0f} s")
            for group, (value, n) in outcome.groups.items():
                if value is None:
                    self.say(f"evaluate  {name} {group}: no {outcome.metric} can be computed on {n:,} examples")
