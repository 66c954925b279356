"""BLIP's losses and gradients on several ranks, of random pairs.

Started with a folder; each rank writes what it found to `<case>-<rank>-<ranks>.safetensors`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from instructkit.config.settings import PairsConfig
from instructkit.runs.ranks import start_ranks
from instructkit.training.blip import BlipObjective
from tests.training.med import PAIRS, QUEUE, gradients_by_loss, random_batch, random_model


def main() -> None:
    rank, world = start_ranks()
    folder = Path(sys.argv[-1])
    cases = {
        "all": (PairsConfig(queue=QUEUE), None),
        "online": (PairsConfig(queue=QUEUE, similarity="online"), None),
        "one image": (PairsConfig(queue=QUEUE), [5] * PAIRS),
        "rank": (PairsConfig(queue=QUEUE, negatives="rank"), None),
    }
    for name, (settings, image_ids) in cases.items():
        found = gradients_by_loss(random_model(), BlipObjective(settings), random_batch(rank, world, image_ids))
        save_file(
            {key: tensor.contiguous() for key, tensor in found.items()}, folder / f"{name}-{rank}-{world}.safetensors"
        )
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
