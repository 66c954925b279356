"""Ports for processes that a test starts."""

from __future__ import annotations

import socket
from collections import deque

_HELD: deque[socket.socket] = deque(maxlen=64)


def free_port() -> int:
    """A port that no other process is given until 64 more were asked for, though the one that is told of it may listen.

    The socket that holds it does not listen: Linux lets another with SO_REUSEADDR do so, as torch's store has it.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("", 0))
    _HELD.append(held)
    return int(held.getsockname()[1])
