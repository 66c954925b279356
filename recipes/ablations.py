"""Train a recipe whole and without each of its parts, with several seeds, and compare: InstructBLIP's ablations.

    python recipes/ablations.py [--config recipes/configs/world.yaml] [--seeds 3] [--out runs/ablations]
        [--begin-with runs/mini/model-2 --begin-with runs/mini/model-8] [key=value ...]

Runs of recipes/instruct.py, one behind the other:
    full                                 the config as it is
    without instruction-aware features   the Q-Former reads no instruction
    without balancing                    every dataset as often as any other
    bare input                           trained without instructions; asked with them, and as it was trained
    names of task and dataset            likewise, with [task:dataset] in front
    N queries                            another model to begin with (--begin-with), made by recipes/pretrain_mini.py
    LoRA on the LLM                      where the config leaves the LLM frozen
Started again, it reads the runs that have ended and goes on with the one that was stopped. `OUT/report/` has means and
deviations, differences paired by seed with their standard error, and the paper's figures apart. Settings behind the
config go to every run.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from instructkit.config.read import find_config, load_config
from instructkit.config.settings import RunConfig
from instructkit.errors import UserError

if __name__ == "__main__":
    sys.path.append(sys.path.pop(0))  # a script's own folder comes first, where evaluate.py would hide the package

from instructkit.evaluation.run import read_evaluation
from instructkit.files import read_json
from instructkit.reports.ablations import FULL, write_ablations
from instructkit.reports.report import read_report
from instructkit.training.datasets import prepare_data
from instructkit.training.length import mixture_of
from instructkit.training.recipe import dotted, evaluate_on_ranks, run_on_ranks, settings_of, word

Settings = Mapping[str, Any]
OWN = {"seed", "output", "resume"}
"""Settings that every run has of its own."""


def uniform(config: RunConfig) -> Settings:
    """Weights by which all datasets are drawn as often: they undo the square root of a size; 0 stays 0."""
    mixture = mixture_of(config)
    drawn = {name for name, chance in mixture.probabilities.items() if chance}
    return {"data.weights": {name: 1 / math.sqrt(size) if name in drawn else 0 for name, size in mixture.sizes.items()}}


VARIATIONS: dict[str, Callable[[RunConfig], Settings]] = {
    FULL: lambda config: {},
    "without instruction-aware features": lambda config: {"model.instruction_aware": False},
    "without balancing": uniform,
    "bare input": lambda config: {"data.instructions": "none"},
    "names of task and dataset": lambda config: {"data.instructions": "name"},
    "LoRA on the LLM": lambda config: {"towers.llm": "lora"},
}
"""What differs, by the settings of the whole recipe; its data are converted."""


def why_not(name: str, config: RunConfig) -> str | None:
    """Why a variation has no meaning for a config; None where it has."""
    if name == "LoRA on the LLM" and config.towers.llm != "frozen":
        return f"{name}: towers.llm={config.towers.llm}, and LoRA is compared with a frozen LLM."
    if name == "without balancing" and len(config.data.train) == 1:
        return f"{name}: there is one dataset."
    return None


def queries_of(model: Path) -> str:
    """A variation's name, by the number of query tokens of a model.

    Raises:
        UserError: the folder holds no model with query tokens.
    """
    config = read_json(model / "config.json", dict, "name a folder that recipes/pretrain_mini.py wrote")
    if not isinstance(number := config.get("num_query_tokens"), int):
        raise UserError(f"{model}: its config.json names no num_query_tokens; name an InstructBLIP or a BLIP-2")
    return f"{number} queries"


def ablate(config: str, settings: Settings, options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Run all variations and write the report; returns what its JSON holds.

    Args:
        config: name of a config of recipes/instruct.py, or its file.
        settings: over those of the config, for every run.
        options: `seeds`, how many, from 0 on; `out`, the folder: a folder a variation and seed, and `report/`;
            `begin_with`, models with other numbers of query tokens; `ranks` of every run.
        say: takes the lines about what is being done.

    Raises:
        UserError: what the recipe says.
    """
    if own := OWN & set(settings):
        raise UserError(f"{min(own)}=...: ablations give each run its own; --seeds and --out say how many and where")
    whole = load_config(find_config(config), [word(key, value) for key, value in settings.items()])
    if whole.recipe != "instruct":
        raise UserError(f"{config}: is for recipes/{whole.recipe}.py; ablations are of recipes/instruct.py")
    if not whole.evaluation.benchmarks:
        raise UserError(f"{config}: asks no benchmark, so that there is nothing to compare; add benchmarks=held-out")
    left_out = [reason for name in VARIATIONS if (reason := why_not(name, whole)) is not None]
    variations = {name: change for name, change in VARIATIONS.items() if why_not(name, whole) is None}
    models = {queries_of(model): model for model in options.begin_with}
    if not models:
        left_out.append("other numbers of queries: no model with them was named (--begin-with).")
    reports: dict[str, list[dict[str, Any]]] = {}
    prepare_data(whole, say)  # what is drawn how often follows from what is converted
    for seed in range(options.seeds):
        for name in (*variations, *models):
            varied = variations[name](whole) if name in variations else {"model.name": models[name]}
            folder = options.out / name.replace(" ", "_") / f"seed-{seed}"
            say(f"--- {name}, seed {seed}: {folder}")
            run_on_ranks(config, {**settings, **varied, "seed": seed, "output": folder}, options.ranks)
            reports.setdefault(name, []).append(read_report(folder))
            if prompts := varied.get("data.instructions"):
                again = folder / "asked_as_trained"
                say(f"--- {name}, asked as it was trained, seed {seed}: {again}")
                asked = {**dotted(read_evaluation(folder).settings), "evaluation.prompts": prompts, "output": again}
                evaluate_on_ranks(asked, options.ranks)
                reports.setdefault(f"{name}, asked as trained", []).append(read_report(again))
    return write_ablations(reports, left_out, options.out / "report")


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="world", help="YAML file, or a name in recipes/configs (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="of the training (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--begin-with", type=Path, action="append", default=[], help="with other numbers of queries")
    parser.add_argument("--ranks", type=int, default=2, help="of every run (%(default)s)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings, over those of the config")
    options = parser.parse_args()
    try:
        ablate(options.config, settings_of(options.settings), options, print)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"report    {options.out / 'report' / 'report.html'}, report.md and report.json")


if __name__ == "__main__":
    main()
