"""An evaluation from Python: a model that is in memory, its scores, its report."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from instructkit.config.read import evaluation_settings
from instructkit.errors import UserError
from instructkit.evaluation.assistant import Model
from instructkit.evaluation.embed import FirstStageModel
from instructkit.evaluation.run import EVALUATION, RESULTS, Evaluation, evaluate, read_evaluation
from instructkit.evaluation.score import value_phrase
from instructkit.files import write_atomically
from instructkit.reports.opened import Report
from instructkit.reports.report import write_evaluation_report
from instructkit.runs.lock import locked_for_all
from instructkit.runs.ranks import current_ranks


class Evaluated:
    """What an evaluation came to.

    Attributes:
        found: all of it: `results` with intervals and groups, `not_evaluated` with reasons.
        folder: of the run, with the answer to every question.
    """

    def __init__(self, found: Evaluation, kept: TemporaryDirectory[str] | None = None) -> None:
        self.found, self.folder, self._kept = found, Path(found.settings.output), kept

    @property
    def scores(self) -> dict[str, float]:
        """Score of each benchmark that has one, 0 to 100 (CIDEr times 100)."""
        return {result.benchmark: result.value for result in self.found.results}

    def report(self, out: str | os.PathLike[str] | None = None) -> Report:
        """Write the report, with the answers that it is made of.

        Args:
            out: folder of the run, made if missing; None for the one that `ik.evaluate` was given.

        Raises:
            UserError: no folder is named, or it holds another evaluation.
        """
        if out is None and self._kept is not None:
            raise UserError("report: name a folder for it: report('out')")
        place = self.folder if out is None else Path(out)
        found = self.found
        if place.resolve() != self.folder.resolve():
            moved = msgspec.structs.replace(found, settings=msgspec.structs.replace(found.settings, output=str(place)))
            if (place / EVALUATION / RESULTS).is_file() and read_evaluation(place) != moved:
                raise UserError(f"{place}: holds another evaluation; name another folder, or delete that")
            shutil.copytree(self.folder, place, dirs_exist_ok=True)
            write_atomically(place / EVALUATION / RESULTS, msgspec.json.format(msgspec.json.encode(moved)) + b"\n")
            found = moved
        return Report(write_evaluation_report(found.settings))

    def __repr__(self) -> str:
        return "\n".join(
            [
                f"{each.title}: {value_phrase(each.metric, each.value, each.details)} on {each.n:,}"
                for each in self.found.results
            ]
            + [f"{each.title}: no score: {each.reason}" for each in self.found.not_evaluated]
        )


def evaluate_model(
    model: Model | FirstStageModel | str | os.PathLike[str],
    benchmarks: str | Sequence[str],
    data: str | os.PathLike[str],
    out: str | os.PathLike[str] | None,
    *,
    say: Callable[[str], None],
    **settings: Any,
) -> Evaluated:
    """Evaluate a model that is in memory, or that a name says; see `instructkit.evaluate`."""
    name = model.name if isinstance(model, Model | FirstStageModel) else os.fspath(model)
    if not name:
        raise UserError("evaluate: the model has no name to keep with its answers; load it by ik.load_model")
    kept = TemporaryDirectory(prefix="instructkit-") if out is None else None
    values: dict[str, Any] = {
        "model.name": name,
        "data.root": os.fspath(data),
        "benchmarks": benchmarks if isinstance(benchmarks, str) else list(benchmarks),
        "output": kept.name if kept else str(out),
    }
    loaded: Any = None  # the network and what tokenises for it, of either kind
    if isinstance(model, Model | FirstStageModel):
        values["dtype"] = model.dtype
        loaded = model.model, model.tokens
    ranks = current_ranks()
    with nullcontext() if out is None else locked_for_all(Path(out)):
        found = evaluate(evaluation_settings({**values, **settings}), ranks, say, loaded=loaded)
    if found is None:
        raise UserError("evaluate: called on several ranks, of which the first alone gets the scores")
    return Evaluated(found, kept)
