"""The first stage's losses and gradients on several ranks, of LAVIS's recorded inputs and of random pairs.

Started with a folder; each rank writes what it found to `<case>-<rank>-<ranks>.safetensors`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from instructkit.runs.ranks import start_ranks
from tests.training.stage1 import PAIRS, gradients_by_loss, random_case, recorded_case


def main() -> None:
    rank, world = start_ranks()
    folder = Path(sys.argv[-1])
    cases = {
        "recorded": recorded_case("stage1_world2", rank, world),
        "random": random_case(rank, world),
        "one image": random_case(rank, world, [5] * PAIRS),
    }
    for name, case in cases.items():
        found = {name: tensor.contiguous() for name, tensor in gradients_by_loss(*case).items()}
        save_file(found, folder / f"{name}-{rank}-{world}.safetensors")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
