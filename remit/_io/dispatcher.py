"""Inbound: what comes to a client from its server: answers at once, events in order to the listeners."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import msgspec

from remit._patterns.event_router import EventRouter
from remit._patterns.names import SERVER_RESTARTED
from remit._patterns.request_reply import RequestClient
from remit._protocol.client_session import ClientSession
from remit._protocol.session import Received, Session
from remit.codec import EventMessage
from remit.errors import CodecError, SessionRefused
from remit.event import Sender

__all__ = ["Dispatch", "Dispatcher"]


logger = logging.getLogger("remit")

Dispatch: TypeAlias = Callable[[], Callable[[Sequence[EventMessage], Sender | None, bool], None] | None]
"""A weak reference to the client's dispatch."""

IDLE_WAIT: Final = 60.0
"""Seconds that an idle dispatch thread sleeps at the most; whatever arrives wakes it."""


class Dispatcher:
    """Sorts what has arrived. ``finished`` is called when listeners have returned in the dispatch thread."""

    def __init__(self, router: EventRouter, dispatch: Dispatch, finished: Callable[[], None]) -> None:
        self._io_handlers = router.io_handlers
        self.malformed = 0
        """Such events that could not be read."""
        self._dispatch = dispatch
        self._finished = finished
        self._waiting: deque[Received] = deque()
        self._unfinished = 0
        self._losses = self._renewals = 0
        self._news = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopping = False

    def __len__(self) -> int:
        return len(self._waiting)

    def take_in(self, machine: ClientSession, asking: RequestClient, now: float) -> None:
        """Take what the machine has heard, and let those who wait know what befell it. On the link's thread."""
        if machine.ready:
            self.sort(machine.ready)
        if machine.disconnects != self._losses:
            self._losses = machine.disconnects
            asking.on_disconnect("the connection was lost")
        if machine.server_restarts != self._renewals:
            self._renewals = machine.server_restarts
            asking.on_server_restart()
            self.renewed(machine.session)
        if len(asking):
            if machine.refusal is not None:
                asking.on_session_refused(SessionRefused(machine.refusal.reason, machine.refusal.detail))
            asking.expire(now)

    def sort(self, ready: deque[Received]) -> None:
        """Give answers and jobs to those who wait for them; keep the rest for the listeners. On the link's thread."""
        while ready:
            session, wires, count, redelivered = ready.popleft()
            rest = [left for wire in wires if (left := self._take(wire)) is not None]
            if not rest and not self._unfinished:
                session.mark_handled(count)
                continue
            self._unfinished += 1
            self._waiting.append((session, rest, count, redelivered))

    def _take(self, wire: EventMessage) -> EventMessage | None:
        """Return what is left for the listeners. Whatever a stranger sends must not end the thread of the link."""
        handler = self._io_handlers.get(wire.name)
        if handler is None:
            return wire
        try:
            return handler(wire)
        except (msgspec.ValidationError, CodecError):
            self.malformed += 1
            return None

    def renewed(self, session: Session) -> None:
        """Let the listeners' side know, in its place among the events, that the server began anew."""
        self._unfinished += 1
        self._waiting.append((session, [EventMessage(SERVER_RESTARTED)], 0, False))

    def hand_over(self) -> int:
        """Give what is kept to the listeners, here and now; return how many events."""
        handed = 0
        while self._waiting:
            handed += self.hand_one()
        return handed

    def hand_one(self) -> int:
        """Give what came first, in one frame, to the listeners; return how many events."""
        session, wires, count, redelivered = self._waiting.popleft()
        dispatch = self._dispatch()
        handed = 0
        try:
            for wire in wires:
                handed += 1
                if dispatch is not None:
                    dispatch((wire,), None, redelivered)
        finally:
            # A listener may have raised SystemExit: its event counts as handled, those behind it have yet to be.
            rest = wires[handed:]
            session.mark_handled(max(0, count - len(rest)))
            if rest:
                self._waiting.appendleft((session, rest, min(count, len(rest)), redelivered))
            else:
                self._unfinished -= 1
        return len(wires)

    def announce(self) -> None:
        """Have a thread of its own give it to the listeners: they may take their time, the link may not."""
        with self._news:
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="remit-dispatch", daemon=True)
                self._thread.start()
            self._news.notify()

    def stop(self, timeout: float) -> None:
        """End the thread within ``timeout`` seconds, unless a listener keeps it."""
        self._stopping = True
        with self._news:
            self._news.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _serve(self) -> None:
        while True:
            with self._news:
                while not self._waiting and not self._stopping:
                    self._news.wait(IDLE_WAIT)
                if self._stopping:
                    return
            try:
                self.hand_over()
            except BaseException:
                # It ends no process from here, and must not end this thread either: nobody would hear any more.
                logger.exception("a listener raised what is no Exception")
            self._finished()
