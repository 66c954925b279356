"""What a tuned model's scores stand between: blind and the model before tuning below, its LLM told in words above.

    python recipes/bounds.py runs/world [--before MODEL] [--words FILE] [--out runs/world/bounds] [--ranks 2]

RUN is a finished run of recipes/instruct.py. Its benchmarks are asked three times more, by the same protocols: the
tuned model about another picture each time, the model that training began with, and the tuned model's LLM in words.
Started again, it goes on where it was. `OUT/report/` has a page, Markdown and JSON; each evaluation lies beside it with
a report of its own.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.append(sys.path.pop(0))  # a script's own folder comes first, where evaluate.py would hide the package

from instructkit.config.read import load_config
from instructkit.config.settings import RunConfig
from instructkit.errors import UserError
from instructkit.evaluation.run import read_evaluation
from instructkit.prompts.described import DESCRIPTIONS
from instructkit.reports.bounds import share_phrase, write_bounds
from instructkit.training.datasets import RAW
from instructkit.training.recipe import dotted, evaluate_on_ranks


def evaluations(run: Path, config: RunConfig, before: str | None, told: Path | None) -> dict[str, dict[str, Any]]:
    """Settings of the three evaluations by name.

    Raises:
        UserError: the run began with random weights or with parts, so that there is no model to ask before tuning.
    """
    if before is None and (config.model.joined or config.model.name == "nano"):
        raise UserError(f"{run}: began with {config.model.base}, which is no model that answers; name one by --before")
    tuned = run / "model"
    return {
        "before": {"model.name": before or config.model.name},
        "exchanged": {"model.name": tuned, "model.exchanged": True},
        "words": {"model.name": tuned, "model.words": told or Path(config.data.root) / RAW / DESCRIPTIONS},
    }


def main() -> None:
    """Read the command line, evaluate and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run of recipes/instruct.py")
    parser.add_argument("--before", help="model before tuning (the run's model.name)")
    parser.add_argument("--words", type=Path, help="what is in each picture (the mini-world's, below the run's data)")
    parser.add_argument("--out", type=Path, help="(RUN/bounds)")
    parser.add_argument("--ranks", type=int, default=2, help="of every evaluation (%(default)s)")
    options = parser.parse_args()
    out = options.out or options.run / "bounds"
    try:
        config = load_config(options.run / "config.yaml")
        own = dotted(read_evaluation(options.run).settings)
        runs = {"tuned": options.run}
        for name, settings in evaluations(options.run, config, options.before, options.words).items():
            print(f"--- {name}: {out / name}", flush=True)
            runs[name] = evaluate_on_ranks({**own, **settings, "output": out / name}, options.ranks)
        found = write_bounds(runs, out / "report")
    except UserError as error:
        raise SystemExit(f"instructkit: {error}") from None
    for role, totals in found["summary"].items():
        means = ", ".join(f"{row} {value:.1f}" for row, value in totals["means"].items())
        print(f"reached   {role}: {means}{share_phrase(totals['share'])}")
    for reason in found["left_out"]:
        print(f"left out  {reason}")
    print(f"report    {out / 'report' / 'report.html'}, report.md and report.json")


if __name__ == "__main__":
    main()
