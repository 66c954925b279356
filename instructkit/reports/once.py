"""A run from its settings to its report: what every recipe that trains does around its training."""

from __future__ import annotations

from collections.abc import Callable

from instructkit.config.settings import RunConfig
from instructkit.reports.report import finished_report, last_lines, write_report
from instructkit.runs.run import Run
from instructkit.runs.waiting import meet, on_first_rank
from instructkit.training.identity import identity


def train_once(run: Run[RunConfig], train: Callable[[], None]) -> None:
    """Train and report, unless the run that lies in the folder is finished and nothing has changed; on every rank.

    Args:
        run: its data are converted and its settings checked (`prepare_run`).
        train: trains, saves the model and, where the recipe does so, evaluates it.
    """
    config, folder = run.config, run.folder
    known = on_first_rank(lambda: identity(config, run.say))
    finished = finished_report(folder, known)
    run.begin(anew=not (finished or config.resume))
    if finished:
        run.say("nothing has changed since the run that lies here; it is not trained again")
    else:
        train()
        on_first_rank(lambda: write_report(config, folder, known))
    if run.first:
        for line in last_lines(folder):
            run.say(line)
    meet()
