"""Exit hook that closes the open clients of this process within a time limit."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import sys
import time
import weakref
from typing import TYPE_CHECKING, Final

from remit.errors import Undelivered
from remit.transport import register_after_fork

if TYPE_CHECKING:
    from remit._io.client_io import ClientIO
    from remit.client import Client

logger = logging.getLogger("remit")

EXIT_LINGER_S: Final = 5.0
"""Time limit at exit for all open clients together."""

_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_kept_alive: set[Client] = set()
"""Clients with listeners, and those that were dropped without being closed: their events are still to be delivered."""
_hooked_pids: set[int] = set()
"""Processes that have their exit hook."""
_deadline: list[float] = []
"""Monotonic time limit of all clients, once the exit hook runs. From then on, an emit waits until it is delivered."""


def register(client: Client, io: ClientIO) -> None:
    """Close ``client`` when the process exits, if it still exists and is open then."""
    if _deadline:
        # Nothing runs after the exit hook: what is emitted by another hook or by a finalizer is sent in that call.
        io.send_queue.wake = functools.partial(_deliver, client, io)
        return
    _clients.add(client)
    _install()


def keep_alive(client: Client) -> None:
    """Reference ``client`` until `unregister`."""
    _kept_alive.add(client)


def unregister(client: Client) -> None:
    """Undo `register`: the client is closed."""
    _kept_alive.discard(client)
    _clients.discard(client)


def is_exiting() -> bool:
    """Return whether the exit hook has run."""
    return bool(_deadline)


def _install() -> None:
    pid = os.getpid()
    if pid in _hooked_pids:
        return
    # Once more than at import. Hooks run in reverse order: this one precedes that of the library of a backend, which is
    # imported by now. A fork server also clears the hooks that its children inherit.
    atexit.register(_close_all)
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        # Children of multiprocessing end by os._exit: they run finalizers, but no atexit hooks.
        sys.modules["multiprocessing.util"].Finalize(None, _close_all, exitpriority=100)
    _hooked_pids.add(pid)


def _close_all() -> None:
    _deadline[:] = _deadline or [time.monotonic() + EXIT_LINGER_S]
    for client in list(_clients):
        try:
            client.close(max(0.0, min(client._options.linger, _deadline[0] - time.monotonic())))
        except Undelivered as lost:
            logger.error("at exit: %s: %s", client.location, lost)
        except Exception:
            logger.exception("at exit: %s", client.location)
        # A hook that runs later, or a finalizer, may use the client once more.
        client._closed = False
    _clients.clear()
    _kept_alive.clear()


def _deliver(client: Client, io: ClientIO) -> None:
    """Wait until all events of a client are delivered, and close its connection: the interpreter ends."""
    if io.driver.holds_link or io.closing:
        return
    io.pump()
    io.drain(max(0.0, _deadline[0] - time.monotonic()), quiet=True)
    if not len(io.requests.open):
        # The library of a backend may wait for its open connections. The next emit opens another one.
        lost = io.close(max(0.0, _deadline[0] - time.monotonic()))
        client._io = None
        if lost is not None:
            logger.error("at exit: %s: %s", client.location, lost)


def _after_fork_in_child() -> None:
    # The open clients belong to the parent; the child registers those that it opens itself.
    _clients.clear()
    _kept_alive.clear()
    _deadline.clear()


register_after_fork(_after_fork_in_child)
# At import: a client may be used for the first time by another exit hook, when no hook can be registered any more.
atexit.register(_close_all)
