"""A rank of CapFilt with fakes: FOLDER OUTPUT, then perhaps how many blocks the last rank keeps before it is killed."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import msgspec
import torch

from instructkit.config.settings import CapFiltRun
from instructkit.evaluation.blocks import Blocks
from instructkit.evaluation.capfilt import judge, run
from instructkit.reports.capfilt import write_capfilt_report
from instructkit.runs.ranks import Ranks, start_ranks
from tests.evaluation.capfilt_fakes import Fake, settings


def main(folder: Path, output: str, most: int | None) -> None:
    judge.PICTURES = 5
    ranks = Ranks(*start_ranks())
    keep, kept = Blocks.keep, 0

    def keep_or_end(self: Blocks, name: str, number: int, tensors: dict[str, torch.Tensor]) -> None:
        nonlocal kept
        if kept == most and ranks.rank == ranks.world - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        keep(self, name, number, tensors)
        kept += 1

    Blocks.keep = keep_or_end  # type: ignore[method-assign]
    config = msgspec.convert(settings(folder, output=str(folder / output)), CapFiltRun)
    fakes = Fake(), Fake(size=6)
    tally = run.caption_and_filter(
        config, ranks, print if ranks.first else lambda line: None, lambda _: judge.Models(*fakes)
    )
    if ranks.first:
        write_capfilt_report(config, tally, folder / output)
    ranks.wait()
    (folder / output / f"kept-{ranks.rank}").write_text(str(kept))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else None)
