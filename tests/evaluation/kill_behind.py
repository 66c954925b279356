"""A command that is killed behind so many calls of a method.

python kill_behind.py 10 instructkit.evaluation.responses:ResponseLog.append evaluate --model ...
"""

import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from instructkit.cli import app


def kill_behind(calls: int, do: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which kills its process when it has been called so often."""
    count = 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal count
        found = do(*args, **options)
        count += 1
        if count == calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    return counted


if __name__ == "__main__":
    calls, place, *words = sys.argv[1:]
    module, _, path = place.partition(":")
    owner, _, method = path.partition(".")
    of = getattr(import_module(module), owner)
    setattr(of, method, kill_behind(int(calls), getattr(of, method)))
    app(words)
