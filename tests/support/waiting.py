"""Waiting for facts with a deadline: the tests' only way to wait."""

from __future__ import annotations

import time
from collections.abc import Callable

from remit import Client, Server

DEADLINE = 45.0
"""Seconds after which a fact that has not come true is a failure."""


def tick_until(server: Server, fact: Callable[[], object], timeout: float = DEADLINE) -> None:
    """Tick the server until ``fact()`` holds."""
    deadline = time.monotonic() + timeout
    while True:
        server.tick()
        if fact():
            return
        assert time.monotonic() < deadline, f"not within {timeout} s: {fact}, {server.stats()}"
        server.wait(0.05)


def wait_until(fact: Callable[[], object], timeout: float = DEADLINE, *, tick: Client | None = None) -> None:
    """Wait until ``fact()`` holds, ticking an unthreaded client meanwhile if one is given."""
    deadline = time.monotonic() + timeout
    pause = 0.0005
    while not fact():
        assert time.monotonic() < deadline, f"not within {timeout} s: {fact}"
        if tick is not None:
            tick.tick(0.05)
        else:
            time.sleep(pause)
            pause = min(pause * 2, 0.02)
