"""Ticking: a server that is ticked by a thread of its own for a block, so that the test's thread can wait."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from waiting import DEADLINE

from remit import Server


@contextmanager
def ticked(server: Server) -> Iterator[Server]:
    """Tick a server in a thread of its own."""
    stopping = threading.Event()

    def run() -> None:
        while not stopping.is_set():
            server.tick()
            server.wait(0.05)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield server
    finally:
        stopping.set()
        thread.join(DEADLINE)
