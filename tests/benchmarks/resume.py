"""Kill a training run at random steps, start it again, and compare every loss with a run that was never stopped.

    python tests/benchmarks/resume.py [--kills 20] [--ranks 1] [--steps 60] [--seed 0]

Each trial starts a run, sends SIGKILL to all its processes once the log has passed a random step (so the kill falls
anywhere: in a step, while a checkpoint is written, between two), starts it again with resume=true and compares the
log, rates left out, line by line. The run has a mixture of two datasets, crops, micro-batches, workers, LoRA and
dropout.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import psutil

from tests.training.conftest import HARD
from tests.training.mini import ROOT, command, environment, repeatable, write_model, write_releases


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        words = [
            *write_releases(folder),
            f"model.name={write_model(folder / 'model', dropout=0.2)}",
            *HARD,
            "batch_size=8",
            "group_size=2",
            "warmup_steps=5",
            "log_every=1",
            "checkpoint_every=7",
            f"max_steps={options.steps}",
        ]
        finish(start(options.ranks, [*words, f"output={folder / 'whole'}"]))
        expected = repeatable(folder / "whole")
        assert len(expected) == options.steps
        chance = random.Random(options.seed)
        equal = 0
        for trial in range(options.kills):
            output = folder / f"killed-{trial}"
            step = chance.randint(1, options.steps - 1)
            process = start(options.ranks, [*words, f"output={output}"])
            kill_behind(process, output, step, chance.uniform(0, 0.2))
            reached = len((output / "log.jsonl").read_text().splitlines())
            said = finish(start(options.ranks, [*words, f"output={output}", "resume=true"]))
            went_on = next((line for line in said.splitlines() if line.startswith("resume")), "resume: not said")
            same = repeatable(output) == expected
            equal += same
            print(
                f"killed behind step {reached:3} | {went_on.split('/')[-1]} | {'equal' if same else 'DIFFERENT'}",
                flush=True,
            )
        print(f"{equal} of {options.kills} equal")
        raise SystemExit(equal != options.kills)


def start(ranks: int, words: list[str]) -> subprocess.Popen[str]:
    recipe = str(ROOT / "recipes" / "instruct.py")
    return subprocess.Popen(
        [*command(ranks), recipe, "--config", "easy_vqa", *words],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=600)
    if process.returncode:
        raise SystemExit(said)
    return said


def kill_behind(process: subprocess.Popen[str], output: Path, step: int, delay: float) -> None:
    """SIGKILL to the launcher and everything that it started, a moment after a step is in the log."""
    path = output / "log.jsonl"
    while not path.is_file() or len(path.read_bytes().splitlines()) < step:
        if process.poll() is not None:
            raise SystemExit(f"the run ended before step {step}: {process.communicate()[0]}")
        time.sleep(0.002)
    time.sleep(delay)
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        member.kill()
    process.wait()
    psutil.wait_procs(family)


if __name__ == "__main__":
    main()
