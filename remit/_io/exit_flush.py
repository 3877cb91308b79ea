"""Exit hook that closes the open clients of this process within a time limit."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
import weakref
from typing import TYPE_CHECKING, Final

from remit.errors import Undelivered
from remit.transport import register_after_fork

if TYPE_CHECKING:
    from remit.client import Client

logger = logging.getLogger("remit")

EXIT_LINGER_S: Final = 5.0
"""Time limit at exit for all open clients together."""

_clients: weakref.WeakSet[Client] = weakref.WeakSet()
kept_alive: set[Client] = set()
"""Clients with an I/O thread: without this reference a client could be collected before its events are delivered."""
_hooked_pids: set[int] = set()
"""Processes that have an exit hook."""


def register(client: Client) -> None:
    """Close ``client`` when the process exits, if it still exists and is open then."""
    _clients.add(client)
    if os.getpid() in _hooked_pids:
        return
    _hooked_pids.add(os.getpid())
    # Once in each process: a fork server clears the exit hooks that its children inherit.
    atexit.register(_close_all)
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        # Children of multiprocessing end by os._exit: they run finalizers, but no atexit hooks.
        util.Finalize(None, _close_all, exitpriority=100)


def _close_all() -> None:
    deadline = time.monotonic() + EXIT_LINGER_S
    for client in list(_clients):
        try:
            client.close(max(0.0, min(client._options.linger, deadline - time.monotonic())))
        except Undelivered as lost:
            logger.error("at exit: %s: %s", client.location, lost)
    _clients.clear()


def _after_fork_in_child() -> None:
    # The open clients belong to the parent; the child registers those that it opens itself.
    _clients.clear()
    kept_alive.clear()


register_after_fork(_after_fork_in_child)
