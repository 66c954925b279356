"""How much of a model that is trained on one source alone a model of all 13 reaches on that source's own test.

    python -m tests.benchmarks.held_in runs/world [--out runs/held_in] [--ranks 2] [key=value ...]

RUN is a finished run of recipes/instruct.py on the mini-world. For each of its sources that has a held-in test the same
recipe is run on that source alone, from the same model and for as many steps. Started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

from instructkit.config.read import load_config
from instructkit.evaluation.run import read_evaluation
from instructkit.evaluation.select import wanted_benchmarks
from instructkit.training.recipe import run_on_ranks, settings_of


def main() -> None:
    """Run and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/held_in"))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    options = parser.parse_args()
    config = options.run / "config.yaml"
    train = load_config(config).data.train
    tests = defaultdict(list)
    for wanted in wanted_benchmarks(["held-in"]):
        if wanted.protocol.source in train:
            tests[wanted.protocol.source].append(wanted.protocol.benchmark)
    mixed = {result.benchmark: result for result in read_evaluation(options.run).results}
    if lost := {name for names in tests.values() for name in names} - mixed.keys():
        raise SystemExit(f"{options.run}: has no score of {min(lost)}; evaluate it with benchmarks=held-in")
    print(
        f"{'benchmark':<14} {'all 13':>8} {'alone':>8} {'share':>7}  of {load_config(config).training.max_steps} steps"
    )
    for source, benchmarks in tests.items():
        folder = options.out / source
        own = {"data.train": [source], "data.weights": {}, "benchmarks": benchmarks, "output": folder}
        run_on_ranks(str(config), {**settings_of(options.settings), **own}, options.ranks)
        for result in read_evaluation(folder).results:
            value = mixed[result.benchmark].value
            share = 100 * value / result.value if result.value else float("nan")
            print(f"{result.benchmark:<14} {value:8.1f} {result.value:8.1f} {share:6.1f}%", flush=True)


if __name__ == "__main__":
    main()
