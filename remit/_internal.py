"""Everything of Remit's internals that Doorman uses. Doorman imports no other internal module of Remit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from remit._patterns.names import SERVER_RESTARTED
from remit._patterns.request_reply import session_of
from remit._protocol.deadlines import DeadlineHeap
from remit.client import Client
from remit.event import Event, Sender
from remit.server import Server

__all__ = [
    "DeadlineHeap",
    "collect_awaitables",
    "emit_now",
    "has_room",
    "on_server_restart",
    "pop_awaitables",
    "report_listener_error",
    "set_ack_delay",
]


def on_server_restart(client: Client, handler: Callable[[], None]) -> None:
    """Call ``handler`` where listeners run, after the client has connected to a restarted server."""
    client._router.register(SERVER_RESTARTED, lambda *_: handler())


def has_room(client: Client) -> bool:
    """Return False if `Client.emit` might wait for room in the send queue."""
    queue = (client._io or client._open()).send_queue
    return len(queue.pending) < queue.capacity


def set_ack_delay(client: Client, seconds: float) -> None:
    """Let acknowledgements wait this long for an event to share its frame, in a client without a thread.

    If each received event is answered soon, this saves the server one frame for each of them.
    """
    (client._io or client._open()).machine.session.ack_delay = seconds


def emit_now(server: Server, client: Sender | None, name: str, args: tuple[Any, ...]) -> None:
    """Send an event to a client in this thread, without waking another one. For a caller that waits for the reply."""
    io = server._io or server._open()
    io.emit(session_of(client), name, args, {}, bounded=False, now=True)


def collect_awaitables(server: Server, *, enabled: bool) -> None:
    """Keep what async listeners return for `pop_awaitables`, instead of reporting it as an error."""
    server._awaitables = [] if enabled else None


def pop_awaitables(server: Server) -> list[tuple[Event, Awaitable[Any]]]:
    """Return the events and awaitables collected since the last call."""
    collected = server._awaitables or []
    popped = collected[:]
    del collected[: len(popped)]
    return popped


def report_listener_error(server: Server, event: Event, error: Exception) -> None:
    """Count and report an exception as one of a listener of ``server``."""
    server._report_error(event, error)
