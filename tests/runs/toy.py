"""A recipe that does nothing but end: what a run does then is looked at from outside."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Sequence

import msgspec

from instructkit.runs.start import start


class Toy(msgspec.Struct):
    """What is done.

    Attributes:
        output: folder of the run.
        what: which way it ends.
        resume: whether it goes on.
    """

    output: str
    what: str = "done"
    resume: bool = False


def read(words: Sequence[str]) -> Toy:
    return msgspec.convert(dict(word.split("=", 1) for word in words), Toy, strict=False)


SETTINGS = start(__name__, __doc__, Toy, read)

import torch
import torch.distributed as dist

from instructkit.errors import UserError
from instructkit.runs.run import Run, main
from instructkit.runs.waiting import on_first_rank


def work(run: Run[Toy]) -> None:
    run.begin(anew=not run.resume)
    what, _, rank = run.config.what.partition("-")
    if what in ENDS and int(rank) == run.rank:
        ENDS[what]()
    elif what in ENDS:
        dist.all_reduce(torch.ones(1))  # the other rank does not come
    elif what == "wait":
        on_first_rank(lambda: (run.say("ready"), signal.pause()))
    elif what == "steps":
        steps(run)
    elif what == "late":
        with run.finishing_steps():
            os.kill(os.getpid(), signal.SIGTERM)
    run.say("done")
    run.log.metrics(1, loss=1.0)


def steps(run: Run[Toy]) -> None:
    with run.finishing_steps():
        for step in range(1_000_000):
            dist.all_reduce(torch.ones(1))
            if step == 3:
                run.say("ready")
            if run.stop_asked():
                run.say(f"saved by rank {run.rank}")
                (run.folder / f"saved-{run.rank}").write_text(str(step))
                run.stop(f"stopped behind step {step}; resume=true goes on")


def user() -> None:
    raise UserError("data/train.jsonl: line 7: key image: missing")


def crash() -> None:
    raise ValueError("of nobody's making\nover two lines")


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x/model.safetensors")


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


ENDS = {"user": user, "crash": crash, "full": full, "killed": killed}

if __name__ == "__main__":
    main(work, SETTINGS, SETTINGS.output)
