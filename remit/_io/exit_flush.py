"""Leaving: no process ends with events in a queue, and none waits for ever to get rid of them."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
import weakref
from typing import Final, Protocol

from remit.errors import Undelivered
from remit.location import Location
from remit.transport import register_after_fork

__all__ = ["Leaver", "forget", "keep", "remember"]


logger = logging.getLogger("remit")

EXIT_LINGER: Final = 5.0
"""Seconds in which all clients that are still open at the interpreter's exit may deliver, together."""


class Leaver(Protocol):
    """A client as its process sees it that ends or forks."""

    @property
    def location(self) -> Location:
        """Where the server is reached."""
        ...

    @property
    def linger(self) -> float:
        """Seconds that `close` waits unless told otherwise."""
        ...

    def close(self, linger: float | None = None) -> None:
        """Wait up to ``linger`` seconds until all is confirmed, then end. Raises Undelivered."""
        ...

    def _after_fork(self) -> None:
        """In a forked child: begin anew at the next use."""
        ...


_CLIENTS: weakref.WeakSet[Leaver] = weakref.WeakSet()
_kept: set[Leaver] = set()
"""Those that a thread serves: it would go on without them, and nobody be told what it could not deliver."""
_registered: set[int] = set()
"""Processes in which `_close_all` will be called."""


def remember(client: Leaver) -> None:
    """Close ``client`` at the process's exit if nobody did before."""
    _CLIENTS.add(client)
    if os.getpid() in _registered:
        return
    _registered.add(os.getpid())
    # In each process anew: a fork server drops the exit functions that its children inherit.
    atexit.register(_close_all)
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        # The children of multiprocessing run no atexit functions, only these.
        util.Finalize(None, _close_all, exitpriority=100)


def keep(client: Leaver) -> None:
    """Let ``client`` live until it is closed, although nobody else refers to it."""
    _kept.add(client)


def forget(client: Leaver) -> None:
    """Let ``client`` go: it is closed."""
    _kept.discard(client)


def _close_all() -> None:
    deadline = time.monotonic() + EXIT_LINGER
    for client in list(_CLIENTS):
        try:
            client.close(max(0.0, min(client.linger, deadline - time.monotonic())))
        except Undelivered as lost:
            logger.error("at exit: %s: %s", client.location, lost)
    _CLIENTS.clear()


def _after_fork_in_child() -> None:
    for client in list(_CLIENTS):
        client._after_fork()
    _CLIENTS.clear()
    _kept.clear()


register_after_fork(_after_fork_in_child)
