"""Dispatcher of a client: replies go to open requests, other events in order to the listeners' thread."""

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
from remit._protocol.session import Received, mark_events_handled
from remit.codec import EventMessage
from remit.errors import CodecError, SessionRefused
from remit.event import Sender

logger = logging.getLogger("remit")

Dispatch: TypeAlias = Callable[[], Callable[[Sequence[EventMessage], Sender | None, bool], None] | None]
"""A weak reference to the dispatch method of the client: its threads must not keep a client alive."""

IDLE_WAIT_S: Final = 60.0
"""Upper bound of one wait of the idle dispatch thread; received events wake it."""


class Dispatcher:
    """Routes received events. ``finished`` is called after listeners have returned in the dispatch thread."""

    def __init__(self, router: EventRouter, dispatch: Dispatch, finished: Callable[[], None]) -> None:
        self.malformed = 0
        """Reserved events that could not be decoded."""
        self._io_handlers = router.io_handlers
        self._dispatch = dispatch
        self._finished = finished
        self._waiting: deque[Received] = deque()
        self._unfinished = 0
        self._disconnects = self._server_restarts = 0
        self._arrived = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopping = False

    def __len__(self) -> int:
        return len(self._waiting)

    # -- on the I/O thread -------------------------------------------------------------------------------------

    def process(self, machine: ClientSession, requests: RequestClient, now: float) -> None:
        """Route received events, and fail the requests that a disconnect, a refusal or a deadline ends."""
        if machine.ready:
            self.route(machine.ready)
        if machine.disconnects != self._disconnects:
            self._disconnects = machine.disconnects
            requests.on_disconnect("the connection was lost")
        if machine.server_restarts != self._server_restarts:
            self._server_restarts = machine.server_restarts
            requests.on_server_restart()
            # Queued like an event, so that its handlers run after those of all events of the old server.
            self._queue((machine.session, [EventMessage(SERVER_RESTARTED)], 0, False))
        if len(requests.open):
            if machine.refusal is not None:
                requests.on_session_refused(SessionRefused(machine.refusal.reason, machine.refusal.detail))
            requests.expire(now)

    def route(self, ready: deque[Received]) -> None:
        """Call the I/O handlers; queue the other events for dispatch."""
        while ready:
            session, wires, count, redelivered = ready.popleft()
            rest = [left for wire in wires if (left := self._handle(wire)) is not None]
            if not rest and not self._unfinished:
                session.mark_handled(count)
                continue
            # Also an empty rest, if earlier events are unfinished: events are acknowledged in order.
            self._queue((session, rest, count, redelivered))

    def _handle(self, wire: EventMessage) -> EventMessage | None:
        """Return the event to dispatch, or None. A malformed event is counted: it must not end the I/O thread."""
        handler = self._io_handlers.get(wire.name)
        if handler is None:
            return wire
        try:
            return handler(wire)
        except (msgspec.ValidationError, CodecError):
            self.malformed += 1
            return None

    def _queue(self, received: Received) -> None:
        self._unfinished += 1
        self._waiting.append(received)

    def wake_thread(self) -> None:
        """Wake the dispatch thread, or start it. Listeners run there, so that a slow one does not delay heartbeats."""
        with self._arrived:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="remit-dispatch", daemon=True)
                self._thread.start()
            self._arrived.notify()

    # -- on the dispatch thread, or in tick() ------------------------------------------------------------------

    def dispatch_all(self) -> int:
        """Dispatch all queued events. Return their number."""
        dispatched = 0
        while self._waiting:
            dispatched += self.dispatch_frame()
        return dispatched

    def dispatch_frame(self) -> int:
        """Dispatch the events of the oldest queued frame, and mark them as handled. Return their number."""
        received = self._waiting.popleft()
        _, wires, _, redelivered = received
        dispatch = self._dispatch()
        dispatched = 0
        try:
            for wire in wires:
                dispatched += 1
                if dispatch is not None:
                    dispatch((wire,), None, redelivered)
        finally:
            # After SystemExit in a listener: that event counts as handled, the events behind it stay queued.
            mark_events_handled(received, dispatched, self._waiting)
            if dispatched == len(wires):
                self._unfinished -= 1
        return len(wires)

    def stop(self, timeout: float) -> None:
        """Stop the dispatch thread. Wait for a running listener up to ``timeout`` seconds."""
        self._stopping = True
        with self._arrived:
            self._arrived.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._arrived:
                while not self._waiting and not self._stopping:
                    self._arrived.wait(IDLE_WAIT_S)
                if self._stopping:
                    return
            try:
                self.dispatch_all()
            except BaseException:
                # SystemExit here would end only this thread, and no listener would run any more.
                logger.exception("a listener raised an exception that is no Exception")
            self._finished()
