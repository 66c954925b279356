"""Two CPU ranks against one, one thread each: what data parallelism gives where it should give twice.

    python -m tests.benchmarks.ranks [--steps 4] [--groups 32]

The model and the examples are those of `tests.benchmarks.training`; both runs take the same steps from the same global
batches through the training engine (DeepSpeed), two ranks half a batch each. The last line is JSON. It says nothing
on a machine whose two cores are not free: the load is printed beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from instructkit.config.settings import TrainingConfig
from instructkit.runs.ranks import start_ranks
from instructkit.training.data import Batch
from instructkit.training.engine import Engine
from instructkit.training.objectives import AnswerObjective
from tests.benchmarks.mixture import Row, draw_batches, shared_batch
from tests.benchmarks.training import OURS, configuration, make_model
from tests.ports import free_port


def part_of(rows: list[Row], rank: int, world: int) -> list[Row]:
    """A rank's image groups of a batch, dealt out as `TrainingData.positions` does."""
    groups: dict[int, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.image, []).append(row)
    largest_first = sorted(groups.values(), key=lambda group: -len(group))
    return [row for group in largest_first[rank::world] for row in group]


def run_rank(options: argparse.Namespace) -> None:
    """Train the steps as one of the ranks; the first prints how long they took and the losses."""
    torch.set_num_threads(1)
    rank, world = start_ranks()
    torch.set_num_threads(1)
    config = configuration("small")
    model = make_model(OURS, config, torch.device("cpu"))
    engine = Engine(
        model,
        AnswerObjective(),
        TrainingConfig(max_steps=options.steps + 1, warmup_steps=0, learning_rate=1e-4),
        Path(options.result).parent,
    )
    losses = []
    began = 0.0
    for number, rows in enumerate(draw_batches(options.steps + 1, options.groups, config)):
        if number == 1:
            dist.barrier()
            began = time.perf_counter()
        mine = part_of(rows, rank, world)
        batch = Batch(shared_batch(mine, config), [str(row.image) for row in mine], [])
        losses.append(engine.step(number, [batch]).loss)
    dist.barrier()
    if rank == 0:
        Path(options.result).write_text(json.dumps({"seconds": time.perf_counter() - began, "losses": losses}))


def measure(world: int, words: list[str], folder: Path) -> dict[str, Any]:
    """Run `world` ranks at once."""
    port = free_port()
    result = folder / f"ranks-{world}-{port}.json"
    ranks = []
    for rank in range(world):
        place = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world}
        place |= {"MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in place.items()}}
        command = [sys.executable, "-m", "tests.benchmarks.ranks", *words, "--result", str(result)]
        ranks.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
    codes = [process.wait() for process in ranks]
    if any(codes):
        raise SystemExit("a rank failed; its message stands above")
    measured: dict[str, Any] = json.loads(result.read_text())
    result.unlink()
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--groups", type=int, default=32, help="images a step, over all ranks")
    parser.add_argument("--result", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.result:
        run_rank(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        one, two = (measure(world, sys.argv[1:], Path(folder)) for world in (1, 2))
    worst = max(abs(a - b) / a for a, b in zip(one["losses"], two["losses"], strict=True))
    cores = len(os.sched_getaffinity(0))
    print(f"{options.steps} steps of {options.groups} images, {cores} cores, load {os.getloadavg()[0]:.1f}")
    print(f"one rank {one['seconds']:.1f} s, two ranks {two['seconds']:.1f} s; losses differ by at most {worst:.1e}")
    if worst > 1e-3:
        raise SystemExit(f"the losses differ: {one['losses']} and {two['losses']}")
    print(json.dumps({"ranks_ratio": round(one["seconds"] / two["seconds"], 3), "loss_difference": worst}))


if __name__ == "__main__":
    main()
