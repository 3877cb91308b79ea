"""Handlers of the reserved events, requests and session changes of one client or server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from remit._protocol.session import Session
from remit.codec import EventMessage
from remit.event import Sender

Handler: TypeAlias = Callable[[EventMessage, Sender | None, bool], Any]
"""Called like a listener, with the event, its sender on a server, and whether it was redelivered."""


class EventRouter:
    """Maps each reserved name to its handlers. ``on_change`` is called after each change of `handlers`."""

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        self.handlers: dict[str, tuple[Handler, ...]] = {}
        self.repeatable: set[str] = set()
        """Names whose handlers are called again if a signal handler has interrupted them."""
        self.io_handlers: dict[str, Callable[[EventMessage], EventMessage | None]] = {}
        """Called on the I/O thread of a client: must not block. Return an event for the dispatch thread, or None."""
        self.request_handlers: dict[str, Callable[..., Any]] = {}
        """Called with the session of the client and the arguments of the request. Return the reply."""
        self.session_closed: list[Callable[[Session], None]] = []
        """Called for each session that has ended, after its last event."""
        self.request_cancelled: list[Callable[[Session, int], None]] = []
        """Called with session and request id when a client cancels a request."""
        self._on_change = on_change

    def register(self, name: str, handler: Handler, *, replace: bool = False, repeatable: bool = False) -> None:
        """Call ``handler`` for each event of this name where listeners run, after or instead of earlier handlers.

        A ``repeatable`` handler is called again if a signal handler has interrupted it.
        """
        if repeatable:
            self.repeatable.add(name)
        self.handlers[name] = (handler,) if replace else (*self.handlers.get(name, ()), handler)
        self._on_change()
