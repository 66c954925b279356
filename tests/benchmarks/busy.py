"""Training beside busy neighbours: the easy-VQA recipe, one rank with two threads, alone and beside endless loops.

    python -m tests.benchmarks.busy [--steps 60] [--rounds 3]

Every round runs the recipe alone, beside one `while True` process pinned to a core, and beside three; and alone once
more without the recipe's look at the load (OpenMP's own waiting). What counts is the median over the rounds of the
samples/s in the second half of the steps. The last line is JSON: quiet over busy, and what the look costs on a quiet
machine. It says nothing on a machine with other work: the load is printed beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.ports import free_port

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "instruct.py"

CORES = sorted(os.sched_getaffinity(0))[:2]
SPIN = {"GOMP_SPINCOUNT": "300000"}
"""GNU OpenMP's own count where nobody says how to wait; given by the user, it keeps the recipe from choosing."""


def train(neighbours: int, steps: int, folder: Path, extra: dict[str, str]) -> float:
    """Samples/s of a run beside so many endless loops."""
    port = str(free_port())
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"OMP_NUM_THREADS": "2", "MASTER_PORT": port, "WANDB_MODE": "disabled", "TQDM_DISABLE": "1", **extra}
    output = folder / f"run-{port}"
    words = [f"output={output}", f"data.root={folder / 'data'}", f"max_steps={steps}", f"log_every={steps // 2}"]
    words += ["checkpoint_every=0", "warmup_steps=10", "evaluation.benchmarks=[]"]
    command = [sys.executable, str(RECIPE), "--config", "easy_vqa", *words]
    with ExitStack() as stack:
        for number in range(neighbours):
            loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(loop.wait)
            stack.callback(loop.kill)
            os.sched_setaffinity(loop.pid, {CORES[number % len(CORES)]})
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, CORES),
        )
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    lines = (output / "log.jsonl").read_text().splitlines()
    return float(json.loads(lines[-1])["samples_per_second"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    plans: dict[str, tuple[int, dict[str, str]]] = {
        "quiet": (0, {}),
        "spinning": (0, SPIN),
        "one": (1, {}),
        "three": (3, {}),
    }
    print(f"load before: {os.getloadavg()[0]:.1f} on cores {CORES}", flush=True)
    found: dict[str, list[float]] = {name: [] for name in plans}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            for name, (neighbours, extra) in plans.items():
                found[name].append(train(neighbours, options.steps, Path(folder), extra))
                print(f"round {number + 1}: {name:<9} {found[name][-1]:7.1f} samples/s", flush=True)
    middle = {name: statistics.median(values) for name, values in found.items()}
    result = {
        "quiet_over_one": round(middle["quiet"] / middle["one"], 2),
        "quiet_over_three": round(middle["quiet"] / middle["three"], 2),
        "lost_when_quiet": round(1 - middle["quiet"] / middle["spinning"], 3),
        **{f"samples_per_second_{name}": round(value, 1) for name, value in middle.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
