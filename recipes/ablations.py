"""Train a recipe whole and without each of its parts, with several seeds, and compare: InstructBLIP's ablations.

    python recipes/ablations.py [--config recipes/configs/world.yaml] [--seeds 3] [--out runs/ablations] [key=value ...]

Runs of recipes/instruct.py, one behind the other in this process:
    full                                 the config as it is
    without instruction-aware features   the Q-Former reads no instruction
    without balancing                    every dataset as often as any other
    bare input                           trained without instructions, asked with them
    names of task and dataset            likewise, with [task:dataset] in front
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
from instructkit.runs.cores import share_cores

if __name__ == "__main__":
    share_cores()  # before torch is loaded
    sys.path.append(sys.path.pop(0))  # a script's own folder comes first, where evaluate.py would hide the package

from instructkit.files import parse_yaml
from instructkit.reports.ablations import FULL, write_ablations
from instructkit.reports.report import read_report
from instructkit.training.length import mixture_of
from instructkit.training.recipe import run_recipe

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


def ablate(config: str, settings: Settings, seeds: int, out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Run all variations and write the report; returns what its JSON holds.

    Args:
        config: name of a config of recipes/instruct.py, or its file.
        settings: over those of the config, for every run.
        seeds: how many, from 0 on.
        out: folder: a folder a variation and seed, and `report/`.
        say: takes the lines about what is being done.

    Raises:
        UserError: what the recipe says.
    """
    if own := OWN & set(settings):
        raise UserError(f"{min(own)}=...: ablations give each run its own; --seeds and --out say how many and where")
    words = [f"{key}={value}" for key, value in settings.items()]
    whole = load_config(find_config(config), words)
    if whole.recipe != "instruct":
        raise UserError(f"{config}: is for recipes/{whole.recipe}.py; ablations are of recipes/instruct.py")
    if not whole.evaluation.benchmarks:
        raise UserError(f"{config}: asks no benchmark, so that there is nothing to compare; add benchmarks=held-out")
    reasons = {name: why_not(name, whole) for name in VARIATIONS}
    reports: dict[str, list[dict[str, Any]]] = {name: [] for name, reason in reasons.items() if reason is None}
    for seed in range(seeds):
        for name, found in reports.items():
            folder = out / name.replace(" ", "_") / f"seed-{seed}"
            say(f"--- {name}, seed {seed}: {folder}")
            given = {key: parse_yaml(str(value), key) for key, value in settings.items()}
            run_recipe(config, {**given, **VARIATIONS[name](whole), "seed": seed, "output": folder, "resume": True})
            found.append(read_report(folder))
    left_out = [reason for reason in reasons.values() if reason is not None]
    return write_ablations(reports, left_out, out / "report")


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="world", help="YAML file, or a name in recipes/configs (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="of the training (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings, over those of the config")
    options = parser.parse_args()
    try:
        if wrong := [word for word in options.settings if "=" not in word]:
            raise UserError(f"{wrong[0]!r}: settings are given as key=value, such as max_steps=20")
        settings = dict(word.split("=", 1) for word in options.settings)
        ablate(options.config, settings, options.seeds, options.out, print)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"report    {options.out / 'report' / 'report.html'}, report.md and report.json")


if __name__ == "__main__":
    main()
