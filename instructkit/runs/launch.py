"""DeepSpeed's launcher as a program that a signal ends in order: python -m instructkit.runs.launch [OPTION ...] SCRIPT.

Left to itself it dies of Ctrl-C with a traceback while its ranks still write their checkpoint, and hands SIGTERM on to
nobody. Here it hands both on, waits for the ranks and ends with 130 or 143.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

import psutil


def main() -> None:
    """Launch, with the words of the command line."""
    from deepspeed.launcher import runner

    asked: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        for child in psutil.Process().children():
            try:
                child.terminate()
            except psutil.NoSuchProcess:
                continue  # the terminal's signal has reached it, too

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as behind nohup
            signal.signal(number, hand_on)
    code: Any = None
    try:
        runner.main(sys.argv[1:])
    except SystemExit as ended:
        code = ended.code
    raise SystemExit(128 + asked[0] if asked else code)


if __name__ == "__main__":
    main()
