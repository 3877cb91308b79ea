"""Ticking: what a thread of its own does, so that the test's can go on: tick a server, close a client."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from waiting import DEADLINE

from remit import Client, Server


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


def closing(client: Client) -> threading.Thread:
    """Close a client in another thread, since this one has to tick its server."""
    thread = threading.Thread(target=client.close)
    thread.start()
    return thread
