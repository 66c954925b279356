"""A run: its settings, its folder, its processes and its log, and how it ends.

A recipe is a function of a `Run`. `main` runs it as a program, with lines for people and exit codes; `open_run` gives a
`Run` to a program that has its own. The recipe calls `Run.begin` once, before it writes anything else to the folder.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

import msgspec

from instructkit.errors import UserError
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

    def begin(self) -> None:
        """Write the log from here on; call on every rank."""
        self.log.open()

    def stop_asked(self) -> bool:
        """Whether the run is asked to end, as all ranks agree; call on every rank, between two steps.

        Nothing asks so far: a signal ends the process at once.
        """
        return False

    @contextmanager
    def finishing_steps(self) -> Iterator[None]:
        """Around steps of which none may be left half done; the recipe looks at `stop_asked` between two of them."""
        yield

    def stop(self, line: str) -> NoReturn:
        """End the run as asked; the line says what is saved and how to go on."""
        self.say(line)
        raise SystemExit(1)


@contextmanager
def open_run(config: C, folder: Path, project: str | None = None) -> Iterator[Run[C]]:
    """A run in this process, or in all that the launcher started; every rank calls it.

    Args:
        config: settings.
        folder: where it writes.
        project: on Weights & Biases, for a run that trains.

    Raises:
        UserError: the ranks cannot start.
    """
    from instructkit.runs.ranks import start_ranks

    rank, world = start_ranks()
    plain: dict[str, Any] = msgspec.to_builtins(config)
    with closing(RunLog(folder, plain, project, active=rank == 0)) as log:
        yield Run(config, folder, rank, world, log)


def main(recipe: Callable[[Run[C]], None], config: C | None, folder: str, project: str | None = None) -> None:
    """Run a recipe as a program: errors become one line, and the process ends with an exit code.

    Exit codes: 0 done; 1 something failed on the way, as the recipe says by SystemExit, or an error that is no user's;
    2 a mistake in what was asked for.

    Args:
        recipe: what to do.
        config: settings, as `start` read them.
        folder: where the run writes.
        project: on Weights & Biases.
    """
    assert config is not None, "start reads the settings when the recipe is the program"
    import torch.distributed as dist

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    try:
        with open_run(config, Path(folder), project) as run:
            recipe(run)
    except UserError as error:
        if not dist.is_initialized() or dist.get_rank() == 0:
            print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except Exception as error:
        print(f"error: {unexpected(error, Path(folder))}", file=sys.stderr)
        raise SystemExit(1) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def unexpected(error: Exception, folder: Path) -> str:
    """A line about an error that no user can be blamed for; its traceback goes to the run's log, or to the console."""
    whole = "".join(traceback.format_exception(error))
    line = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    with suppress(OSError):
        with (folder / "run.log").open("a", encoding="utf-8") as file:
            file.write(whole)
        return f"{line}; the traceback is in {folder / 'run.log'}"
    sys.stderr.write(whole)
    return line
