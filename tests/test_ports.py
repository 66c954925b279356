"""Ports of tests: nobody else takes them between the moment they are chosen and the moment they are used."""

from __future__ import annotations

import re
import socket
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from tests.ports import free_port


def test_a_port_is_held_for_the_store_that_is_told_of_it() -> None:
    port = free_port()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    store = TCPStore("127.0.0.1", port, 1, is_master=True, timeout=timedelta(seconds=60))
    store.set("key", "value")
    assert TCPStore("127.0.0.1", port, 1, is_master=False).get("key") == b"value"


def test_no_test_lets_go_of_a_port_before_it_is_used() -> None:
    chosen = re.compile(r"\.bind\(\(|master_port\W+\d|MASTER_PORT\W+[1-9]")
    files = [path for path in Path(__file__).parent.rglob("*.py") if chosen.search(path.read_text(encoding="utf-8"))]
    assert {path.name for path in files} <= {"ports.py", "test_ports.py"}
