"""A rank of a retrieval with a stand-in: FOLDER, then perhaps how many blocks it keeps before it is killed."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from instructkit.evaluation import retrieve as retrieval
from instructkit.evaluation.blocks import Blocks
from instructkit.runs.ranks import Ranks, start_ranks
from tests.evaluation.stand_in import StandIn, gallery


def main(folder: Path, most: int | None) -> None:
    retrieval.IMAGES, retrieval.TEXTS, retrieval.MATCHED = 3, 7, 2
    ranks = Ranks(*start_ranks())
    keep, kept = Blocks.keep, 0

    def keep_or_end(self: Blocks, name: str, number: int, tensors: dict[str, torch.Tensor]) -> None:
        nonlocal kept
        if kept == most and not ranks.first:
            os.kill(os.getpid(), signal.SIGKILL)
        keep(self, name, number, tensors)
        kept += 1

    Blocks.keep = keep_or_end  # type: ignore[method-assign]
    made = Blocks(folder / "blocks", ranks)
    made.open({"model": "stand-in"})
    found = retrieval.retrieve(StandIn(), gallery(17, 40, broken=[4]), 5, 3, made)
    if found is not None:
        torch.save([found.of_images, found.of_texts, found.errors], folder / "found.pt")
    ranks.wait()
    (folder / f"kept-{ranks.rank}").write_text(str(kept))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
