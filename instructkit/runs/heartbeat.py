"""Ranks on several machines notice within a minute that one of them is gone.

A collective waits for a lost machine until its own time-out, which is long, since a rank may rightly have much to do
between two of them. Here every rank keeps a TCP connection to the first one. Both ends send a line every few seconds;
an end that hears nothing, or whose connection breaks without a goodbye, says who is lost and ends its process.
"""

from __future__ import annotations

import atexit
import os
import socket
import sys
import threading
from typing import NoReturn, TextIO

from instructkit.errors import UserError
from instructkit.runs.waiting import on_first_rank

BEAT = 5.0
"""Seconds between two signs of life."""

LOST = 40.0
"""Seconds of silence after which a rank counts as lost."""

_lock = threading.Lock()
_leaving = threading.Event()
_peers: dict[socket.socket, tuple[str, TextIO]] = {}


def watch_ranks(rank: int, world: int, local: int) -> None:
    """Start to watch, if the ranks span several machines; call on every rank.

    Args:
        rank: of this process.
        world: number of ranks.
        local: number of ranks on this machine.

    Raises:
        UserError: ranks cannot reach the first one over TCP.
    """
    if local >= world:
        return
    here = f"rank {rank} on {socket.gethostname()}"
    listener = socket.create_server(("", 0), backlog=world) if rank == 0 else None
    port, first = on_first_rank(lambda: (listener.getsockname()[1] if listener else 0, here))
    address = (os.environ["MASTER_ADDR"], port)
    try:
        if listener:
            listener.settimeout(LOST)
            for _ in range(world - 1):
                peer, _ = listener.accept()
                peer.settimeout(LOST)
                lines: TextIO = peer.makefile()
                _peers[peer] = (lines.readline().strip(), lines)
            listener.close()
        else:
            peer = socket.create_connection(address, timeout=LOST)
            peer.sendall(f"{here}\n".encode())
            _peers[peer] = (first, peer.makefile())
    except OSError as error:
        raise UserError(
            f"ranks cannot reach {address[0]} port {address[1]} for their heartbeat ({error}); "
            f"let the machines talk over every TCP port"
        ) from error
    for name, lines in _peers.values():
        threading.Thread(target=_listen, args=(name, lines), daemon=True).start()
    threading.Thread(target=_beat, daemon=True).start()
    atexit.register(leave)


def leave() -> None:
    """Say goodbye to the others, which then do not take this rank for lost."""
    if not _leaving.is_set():
        _leaving.set()
        _tell("bye")


def _beat() -> None:
    while not _leaving.wait(BEAT):
        _tell("beat")


def _tell(line: str) -> None:
    with _lock:
        for peer in _peers:
            try:
                peer.sendall(f"{line}\n".encode())
            except OSError:
                continue  # its listener hears of it, or it has said goodbye


def _listen(name: str, lines: TextIO) -> None:
    while True:
        try:
            line = lines.readline().strip()
        except TimeoutError:
            _end(name, f"silent for {LOST:.0f} seconds")
        except OSError as error:
            _end(name, str(error))
        if line == "bye":
            return
        if not line:
            _end(name, "its process has ended")
        if line != "beat":
            _end(*line.split("; ", 1))


def _end(name: str, how: str) -> NoReturn:
    """End this process; the others are told who was lost, lest they take this one for it."""
    _tell(f"{name}; {how}")
    # On a line of its own: a progress bar may stand in this one.
    print(f"\nerror: lost {name} ({how}); start all ranks again with resume=true", file=sys.stderr, flush=True)
    os._exit(1)
