"""What Doorman uses of Remit's internals, apart from `_internal_asyncio`. It imports no other internal module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from remit._patterns.names import SERVER_RESTARTED
from remit._patterns.request_reply import session_of
from remit._protocol.deadlines import DeadlineHeap as DeadlineHeap
from remit.client import Client
from remit.event import Sender
from remit.server import Server


def ignore_unheard(server: Server) -> None:
    """Log no more events without a listener: the server is about to close, and its listeners are removed first."""
    server._unheard_hint = ""


def on_server_restart(client: Client, handler: Callable[[], None]) -> None:
    """Call ``handler`` where listeners run, after the client has connected to a restarted server."""
    client._router.register(SERVER_RESTARTED, lambda *_: handler())


def has_room(client: Client) -> bool:
    """Return whether the send queue has room for a small event, so that `Client.emit` does not wait."""
    queue = (client._io or client._open()).send_queue
    return len(queue.pending) < queue.capacity


def set_ack_delay(client: Client, seconds: float) -> None:
    """Delay acknowledgements of a client without a thread, so that they share a frame with the next event.

    If the client answers each received event soon, the server receives one frame for each event instead of two.
    """
    (client._io or client._open()).machine.session.ack_delay = seconds


def emit_now(server: Server, client: Sender | None, name: str, args: tuple[Any, ...]) -> None:
    """Send an event to a client in this thread, without waking another thread. For a caller that awaits the reply."""
    io = server._io or server._open()
    io.emit(session_of(client), name, args, {}, bounded=False, now=True)
