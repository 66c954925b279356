"""Evaluate a model on benchmarks, over one or several ranks.

    deepspeed recipes/evaluate.py model.name=runs/easy_vqa/model benchmarks=held-out output=runs/zero_shot [limit=100]

The settings are named as those of a training run (`instructkit/config/settings.py` explains every one; data.root is
where the converted datasets are). Each rank answers whole batches of the same plan and the first one merges them, so
the result does not depend on the number of ranks. Killed and started again, with as many ranks or not, it goes on where
it was.
"""

from __future__ import annotations

from instructkit.config.read import evaluation_words
from instructkit.config.settings import EvaluationRun
from instructkit.runs.start import start

SETTINGS = start(__name__, __doc__, EvaluationRun, evaluation_words)

from instructkit.evaluation.run import evaluate
from instructkit.reports.report import failed, last_lines, write_evaluation_report
from instructkit.runs.ranks import current_ranks
from instructkit.runs.run import Run, main
from instructkit.runs.waiting import on_first_rank


def evaluate_and_report(run: Run[EvaluationRun]) -> None:
    """Evaluate on all ranks; the first writes the report."""
    run.begin(anew=False)
    found = evaluate(run.config, current_ranks(), run.say)
    on_first_rank(lambda: write_evaluation_report(run.config))
    if found is not None:
        for line in last_lines(run.folder):
            run.say(line)
        if failed(found):
            raise SystemExit(1)


if __name__ == "__main__":
    main(evaluate_and_report, SETTINGS, SETTINGS.output)
