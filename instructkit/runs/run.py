"""A run: its settings, its folder, its processes and its log, and how it ends.

A recipe is a function of a `Run`. `main` runs it as a program, with lines for people and exit codes; `open_run` gives a
`Run` to a program that has its own. The recipe calls `Run.begin` once when it knows what becomes of an earlier run that
lies in the folder, and keeps signals back with `Run.finishing_steps` where it looks at `Run.stop_asked` itself.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

import msgspec

from instructkit.errors import UserError, quote
from instructkit.files import refusal, writing
from instructkit.runs import provenance
from instructkit.runs.ending import ENDING, Stopped
from instructkit.runs.lock import check_places, locked_for_all, move_aside
from instructkit.runs.log import RunLog

C = TypeVar("C")


@dataclass
class Run(Generic[C]):
    """One run of a recipe, as one of its processes sees it.

    Attributes:
        config: settings.
        folder: where it writes.
        rank: of this process.
        world: number of processes.
        log: words and numbers; writes on the first rank alone.
    """

    config: C
    folder: Path
    rank: int
    world: int
    log: RunLog

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and talks."""
        return self.rank == 0

    @property
    def resume(self) -> bool:
        """Whether the run goes on from its last checkpoint."""
        return bool(getattr(self.config, "resume", False))

    def say(self, line: str) -> None:
        """A line for people, from the first rank alone."""
        self.log.say(line)

    def begin(self, *, anew: bool) -> None:
        """Take the folder: the log is written from here on; call on every rank.

        Args:
            anew: the run starts from nothing, so that the whole of an earlier one that lies here moves aside.

        Raises:
            UserError: the folder cannot be written.
        """
        from instructkit.runs.waiting import on_first_rank

        aside = on_first_rank(self._move_aside) if anew else None
        on_first_rank(self._open)
        if aside is not None:
            self.say(f"output    an earlier run lay in {self.folder}; the whole of it lies in {aside} now")
        ENDING.hint = "the same command goes on from here" if not anew else "no step is done yet"

    def _open(self) -> None:
        check_places(self.folder)
        with writing(self.folder):
            self.log.open()

    def _move_aside(self) -> Path | None:
        model = getattr(self.config, "model", None)
        for part in ("name", "vision", "qformer", "llm"):
            name = getattr(model, part, None)
            if name is not None and self.folder.resolve() in Path(name).resolve().parents and Path(name).exists():
                raise UserError(
                    f"model.{part}={name} lies in the run's own folder, whose earlier run would move aside; "
                    "choose another folder (output=...)"
                )
        return move_aside(self.folder)

    @contextmanager
    def finishing_steps(self) -> Iterator[None]:
        """Keep SIGTERM and Ctrl-C back until the recipe looks at `stop_asked`, between two steps.

        One that comes behind the last look ends the run when the steps are done.
        """
        ENDING.hint = "resume=true goes on from the last checkpoint"
        ENDING.waits = True
        try:
            yield
        finally:
            ENDING.waits = False
        ENDING.obey()

    def stop_asked(self) -> bool:
        """Whether a signal asked any rank to end; call on every rank, between two steps. All get the same answer."""
        from instructkit.runs.ranks import max_over_ranks

        agreed = int(max_over_ranks([ENDING.asked])[0])
        if agreed:  # a signal that came meanwhile stays for the next time
            ENDING.asked = agreed
        return agreed != 0

    def stop(self, line: str) -> NoReturn:
        """End the run, as a signal has asked; the line says what is saved and how to go on."""
        raise Stopped(line)


@contextmanager
def open_run(config: C, folder: Path, project: str | None = None) -> Iterator[Run[C]]:
    """A run in this process, or in all that the launcher started; every rank calls it.

    Args:
        config: settings.
        folder: where it writes.
        project: on Weights & Biases, for a run that trains.

    Raises:
        UserError: the ranks cannot start, another run writes to the folder, or nobody can.
    """
    from instructkit.runs.ranks import start_ranks

    rank, world = start_ranks()
    plain: dict[str, Any] = msgspec.to_builtins(config)
    with locked_for_all(folder), closing(RunLog(folder, plain, project, active=rank == 0)) as log:
        run = Run(config, folder, rank, world, log)
        for line in provenance.lines(getattr(config, "seed", None)) if rank == 0 else []:
            run.say(line)
        yield run


def main(recipe: Callable[[Run[C]], None], config: C | None, folder: str, project: str | None = None) -> None:
    """Run a recipe as a program: errors become one line, and the process ends with an exit code.

    Exit codes: 0 done; 1 something failed on the way, as the recipe says by SystemExit, or an error that is no user's;
    2 a mistake in what was asked for, or a disk that is full; 130 and 143 stopped by Ctrl-C or SIGTERM.

    Args:
        recipe: what to do.
        config: settings, as `start` read them.
        folder: where the run writes.
        project: on Weights & Biases.
    """
    assert config is not None, "start reads the settings when the recipe is the program"
    import torch.distributed as dist

    from instructkit.runs.ranks import current_ranks, start_ranks
    from instructkit.runs.waiting import meet

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    place = Path(folder)
    code: Any = 0
    try:
        start_ranks()
        ENDING.join(*current_ranks())
        with open_run(config, place, project) as run:
            ENDING.log = place / "run.log"
            try:
                recipe(run)
            except SystemExit as ended:
                code = ended.code
        ENDING.leave()
        meet()
    except Stopped as stopped:
        ENDING.end(128 + ENDING.asked, str(stopped))
    except Exception as error:
        lost = None if isinstance(error, UserError) else ENDING.lost()
        if lost is not None:
            ENDING.end(1, lost or None)
        ranks = current_ranks()
        number = f"rank {ranks.rank}: " if ranks.world > 1 and not getattr(error, "shared", False) else ""
        code, line = told(error, place)
        ENDING.end(code, f"error: {number}{line}")
    dist.destroy_process_group()
    raise SystemExit(code)


def told(error: Exception, folder: Path) -> tuple[int, str]:
    """The exit code of an error and its line for people; a traceback that may be wanted goes to the run's log."""
    if isinstance(error, UserError):
        return 2, str(error)
    place = str(getattr(error, "filename", None) or folder)
    text = " ".join(str(error).split())
    kind = type(error).__name__
    known = None
    if (reason := refusal(error, folder)) is not None:
        known = f"{place}: cannot be read or written ({reason})"
    elif re.match(r"DataLoader worker \(pid", text):
        known = (
            f"{text[:200]}; a process that prepares batches was killed, often for want of memory: lower data.workers"
        )
    elif kind == "OutOfMemoryError" or isinstance(error, MemoryError):
        known = "out of memory; a smaller batch_size or a larger accumulation needs less (instructkit plan counts it)"
    log = folder / "run.log"
    whole = "".join(traceback.format_exception(error))
    try:
        with log.open("a", encoding="utf-8") as file:
            file.write(whole)
        where = f"; the traceback is in {log}"
    except OSError:
        where = ""
        if known is None:
            sys.stderr.write(whole)
    return (1, f"{kind}: {quote(text)[1:-1]}{where}") if known is None else (2, known)
