"""How a program ends before its time: by an error on one of its ranks, a signal, or because its launcher has gone.

All ranks end at once and one of them says why, in one line. The first to end puts its exit code into the store that the
ranks met at; a thread of each rank looks there, so that a rank that waits in a collective ends as well. A rank whose
launcher was killed sends itself SIGTERM from that thread.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

LOOK = 0.25
"""Seconds between two looks at the store and at the launcher."""
_KEY = "instructkit/ending"
_GOODBYE = 5.0
"""Seconds that a rank waits for the others to hear of its end."""
_TWICE = 1.0
"""Seconds after which a second Ctrl-C is one of a person who does not want to wait; launchers send two at once."""
_GONE = "error: the first rank has ended without a word; perhaps it was killed"


class Stopped(BaseException):
    """The run was asked to stop and has; the message says how to go on."""


class Ending:
    """The end of this process and of the ranks beside it.

    Attributes:
        asked: the signal that asked for the end, or 0.
        waits: whether a signal waits until `Run.stop_asked` is called, as between two steps of training.
        log: file that the last line is also written to.
        hint: how to go on, for the line of a signal.
    """

    def __init__(self) -> None:
        self.asked = 0
        self.waits = False
        self.log: Path | None = None
        self.hint = "nothing was done yet"
        self._since = 0.0
        self._owner = os.getpid()
        self._world = 1
        self._first_here = int(os.environ.get("LOCAL_RANK", 0)) == 0
        self._store: Any = None
        self._lock = threading.RLock()  # a signal may come while it is held
        self._ended = threading.Event()
        self._parents = _launchers()

    def begin(self) -> None:
        """Take the signals, unless they are ignored as behind nohup, and watch the launcher if there is one."""
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        if self._parents:
            self._watch()

    def join(self, rank: int, world: int) -> None:
        """Watch the other ranks, with which this one has met."""
        if world == 1:
            return
        import torch.distributed as dist

        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # A connection of its own: the process group's is held while it waits.
        store = dist.TCPStore(address, port, world, is_master=False, wait_for_workers=False)
        self._world, self._first_here, self._store = world, rank == 0, store
        if not self._parents:
            self._watch()

    def leave(self) -> None:
        """The others may end from here on without a word; the run is done."""
        self._ended.set()

    def end(self, code: int, line: str | None) -> NoReturn:
        """End this process and the other ranks, with one line from the first that ends."""
        if not self._claim(code):
            code = self._check() or code
        elif line is not None and (self._world > 1 or self._first_here):
            self._tell(line)
        self._exit(code)

    def obey(self) -> None:
        """End at once if a signal has asked for it."""
        if self.asked:
            self.end(128 + self.asked, f"stopped by {signal.Signals(self.asked).name}; {self.hint}")

    def lost(self) -> str | None:
        """What to say of another rank's end, from which this one's error follows: nothing where that one has told it.

        None where all others are there.
        """
        if self._store is None:
            return None
        try:
            until = time.monotonic() + 4 * LOOK
            while time.monotonic() < until:
                if self._check() is not None:
                    return ""
                time.sleep(LOOK)
        except RuntimeError:
            return _GONE
        return None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            return  # a forked worker, which ends with its parent
        now = time.monotonic()
        if self.asked:
            if number == signal.SIGINT and now - self._since > _TWICE:
                self.end(128 + number, f"stopped at once; {self.hint}")
            return
        self.asked, self._since = number, now
        if not self.waits:
            self.obey()
        elif self._first_here:
            self._write(f"{signal.Signals(number).name}: the run stops behind this step")

    def _watch(self) -> None:
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        gone = False
        while not self._ended.wait(LOOK):
            if not gone and any(_parent(pid) != parent for pid, parent in self._parents):
                gone = True
                os.kill(self._owner, signal.SIGTERM)
            if self._store is None:
                continue
            try:
                code = self._check()
            except RuntimeError:
                self._ended.wait(_GOODBYE)  # its own launcher may end this rank, or an error be told
                if self._ended.is_set():
                    return
                self._tell(_GONE)
                self._exit(1)
            if code is not None:
                self._exit(code)

    def _check(self) -> int | None:
        with self._lock:
            return int(self._store.get(_KEY)) if self._store.check([_KEY]) else None

    def _claim(self, code: int) -> bool:
        """Whether this is the first rank to end; also where no other can be asked."""
        if self._ended.is_set() or self._store is None:
            return True
        try:
            with self._lock:
                return bool(self._store.add(f"{_KEY}/claims", 1) == 1 and not self._store.set(_KEY, str(code)))
        except RuntimeError:
            return True

    def _tell(self, line: str) -> None:
        self._write(line)
        if self.log is not None and self.log.is_file():
            try:
                with self.log.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
            except OSError as error:
                self._write(f"{self.log}: cannot be written ({error.strerror})")

    def _write(self, line: str) -> None:
        """To the console, past Python's buffers: one of them may be what a signal has interrupted.

        Whoever read it may be gone; the log has the line, too.
        """
        with suppress(OSError):
            os.write(2, f"\n{line}\n".encode() if sys.stderr.isatty() else f"{line}\n".encode())

    def _exit(self, code: int) -> NoReturn:
        """Leave once the others have heard of it; nothing of Python's or torch's own end is waited for."""
        self._ended.set()
        if self._store is not None:
            try:
                from instructkit.runs.heartbeat import leave

                leave()
                with self._lock:
                    self._store.add(f"{_KEY}/heard", 1)
                until = time.monotonic() + _GOODBYE
                while self._store.add(f"{_KEY}/heard", 0) < self._world and time.monotonic() < until:
                    time.sleep(0.05)
            except RuntimeError:
                pass  # the store has gone, and with it the first rank
        for child in multiprocessing.active_children():
            child.kill()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, RuntimeError):
                continue  # a closed pipe, or a buffer that the signal interrupted
        os._exit(code)


def _launchers() -> list[tuple[int, int]]:
    """Processes from this one up to the program that a person started, as far as a launcher stands between them."""
    if "LOCAL_RANK" not in os.environ:
        return []
    launch = os.getppid()
    found = [(os.getpid(), launch)]
    try:
        if b"deepspeed.launcher.launch" in Path(f"/proc/{launch}/cmdline").read_bytes():
            runner = _parent(launch)
            told = Path(f"/proc/{runner}/cmdline").read_bytes()
            if runner is not None and (b"deepspeed" in told or b"instructkit.runs.launch" in told):
                found.append((launch, runner))
    except OSError:
        pass  # it has ended, which the first look says
    return found


def _parent(pid: int) -> int | None:
    """The parent of a process; None of one that has ended."""
    if pid == os.getpid():
        return os.getppid()
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


ENDING = Ending()
"""That of this process; `start` begins it."""
