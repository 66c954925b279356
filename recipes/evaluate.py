"""Evaluate a model on benchmarks, over one or several ranks.

    deepspeed recipes/evaluate.py model=runs/easy_vqa/model data=data benchmarks=held-out out=runs/zero_shot [limit=100]

The settings are those of `instructkit evaluate` (`instructkit/evaluation/settings.py` explains every one). Each rank
answers whole batches of the same plan and the first one merges them, so the result does not depend on the number of
ranks. Killed and started again, with as many ranks or not, it goes on where it was.
"""

from __future__ import annotations

import argparse
import logging
import sys

# A script's own folder comes first on the path, where evaluate.py would hide the package of that name.
sys.path.append(sys.path.pop(0))

from instructkit.runs.cores import share_cores

share_cores()  # before torch is loaded

import torch.distributed as dist

from instructkit.errors import UserError
from instructkit.evaluation.run import evaluate
from instructkit.evaluation.settings import EvaluationSettings, settings_from_words
from instructkit.reports.report import failed, last_lines, write_evaluation_report
from instructkit.runs.ranks import current_ranks
from instructkit.runs.waiting import on_first_rank
from instructkit.training.engine import start_ranks


def main(arguments: list[str] | None = None) -> None:
    """Run the recipe with command-line arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("settings", nargs="+", metavar="key=value", help="model, data, benchmarks, out, limit, ...")
    options = parser.parse_args(arguments)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    try:
        evaluate_and_report(settings_from_words(options.settings))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def evaluate_and_report(settings: EvaluationSettings) -> None:
    """Evaluate on all ranks; the first writes the report."""
    start_ranks()
    ranks = current_ranks()
    found = evaluate(settings, ranks, print)

    def report() -> None:
        for line in last_lines(write_evaluation_report(settings)):
            print(line)

    on_first_rank(report)
    if found is not None and failed(found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
