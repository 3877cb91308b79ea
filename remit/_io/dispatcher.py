"""Dispatcher of a client: replies go to open requests, other events in order to the listeners' thread."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final, TypeAlias

import msgspec

from remit._patterns.event_router import EventRouter
from remit._patterns.names import SERVER_RESTARTED
from remit._patterns.request_reply import RequestClient
from remit._protocol.client_session import ClientSession
from remit._protocol.session import Received
from remit.codec import EventMessage
from remit.errors import CodecError, SessionRefused
from remit.transport import DaemonThread

logger = logging.getLogger("remit")

Dispatch: TypeAlias = Callable[[], Callable[[Received], int] | None]
"""A weak reference to the dispatch method of the client: its threads must not keep a client alive."""

IDLE_WAIT_S: Final = 60.0
"""Upper bound of one wait of the idle dispatch thread; received events wake it."""
ROUTING_TIMEOUT_S: Final = 1.0
"""Longest wait, without an I/O thread, for the callbacks that another thread runs."""


class Dispatcher:
    """Routes received events. ``finished`` is called after listeners have returned in the dispatch thread."""

    def __init__(self, router: EventRouter, dispatch: Dispatch, finished: Callable[[], None]) -> None:
        self.malformed = 0
        """Reserved events that could not be decoded."""
        self.handlers: dict[str, Callable[[EventMessage], EventMessage | None]] = {}
        """I/O handlers of this connection. They precede those of the router, which other connections share."""
        self._io_handlers = router.io_handlers
        self._dispatch = dispatch
        self._finished = finished
        self._waiting: deque[Received] = deque()
        """Received events. The oldest ones stay here while their listeners run."""
        self._handled: Received | None = None
        """The last frame whose events the I/O handlers have seen: other threads may dispatch it now."""
        self._disconnects = self._server_restarts = 0
        self._routing = threading.RLock()
        # A SimpleQueue: put() may be called in a signal handler or finalizer that interrupts any other call.
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._thread = DaemonThread(self._run, "remit-dispatch")
        self._stopping = False

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def routes_here(self) -> bool:
        """Whether the calling thread is within `process`."""
        return self._routing._is_owned()  # type: ignore[attr-defined,no-any-return]

    def process(self, machine: ClientSession, requests: RequestClient, now: float) -> None:
        """Route received events, and fail the requests that a disconnect, a refusal or a deadline ends."""
        lost = machine.disconnects + machine.server_restarts != self._disconnects + self._server_restarts
        if not (machine.ready or lost or machine.refusal is not None or requests.open.deadlines.is_due(now)):
            return
        if self.routes_here:
            return  # The callback of a future pumps. The call that runs it continues with what has arrived.
        try:
            if self._routing.acquire(False) or self._routing.acquire(timeout=ROUTING_TIMEOUT_S):
                self._process(machine, requests, now)
                self._routing.release()
        except BaseException:
            while self.routes_here:
                self._routing.release()
            raise

    def _process(self, machine: ClientSession, requests: RequestClient, now: float) -> None:
        if machine.ready:
            self.route(machine.ready)
        if machine.disconnects != self._disconnects:
            # Noted afterwards: after an interrupt it is done again.
            disconnects = machine.disconnects
            requests.on_disconnect("the connection was lost")
            self._disconnects = disconnects
        if machine.server_restarts != self._server_restarts:
            restarts = machine.server_restarts
            requests.on_server_restart()
            # Queued like an event, so that its handlers run after those of all events of the old server.
            self._waiting.append(Received(machine.session, [EventMessage(SERVER_RESTARTED)]))
            self._server_restarts = restarts
        if len(requests.open):
            if machine.refusal is not None:
                requests.on_session_refused(SessionRefused(machine.refusal.reason, machine.refusal.detail))
            requests.expire(now)

    def route(self, ready: deque[Received]) -> None:
        """Call the I/O handlers; queue the other events for dispatch."""
        # Each frame stays in `ready` until it is routed: after an interrupt the next call continues, and an I/O handler
        # may see an event twice.
        while ready:
            received = ready[0]
            events = received.events
            if events:
                if received is not self._handled:
                    for place, wire in enumerate(events):
                        if wire is not None:
                            events[place] = self._handle(wire)
                    self._handled = received
                # Also without a listener to call, if earlier events wait: events are acknowledged in order. After an
                # interrupt it is queued twice, and has no events left the second time.
                if self._waiting or events.count(None) < len(events):
                    self._waiting.append(received)
                else:
                    received.mark_handled(len(events))
            ready.popleft()

    def _handle(self, wire: EventMessage) -> EventMessage | None:
        """Return the event to dispatch, or None. A malformed event is counted: it must not end the I/O thread."""
        handler = self.handlers.get(wire.name) or self._io_handlers.get(wire.name)
        if handler is None:
            return wire
        try:
            return handler(wire)
        except (msgspec.ValidationError, CodecError):
            self.malformed += 1
            return None
        except Exception:
            if threading.current_thread() is threading.main_thread():
                raise  # A signal handler may have raised it.
            logger.exception("an event of the server was dropped: its handler failed")
            self.malformed += 1
            return None

    def wake_thread(self) -> None:
        """Wake the dispatch thread, or start it. Listeners run there, so that a slow one does not delay heartbeats."""
        if not self._stopping:
            self._thread.start()
        self._bell.put(None)

    def dispatch_all(self) -> int:
        """Dispatch all queued events. Return their number."""
        dispatched = 0
        while self._waiting:
            dispatched += self.dispatch_frame()
        return dispatched

    def dispatch_frame(self) -> int:
        """Dispatch the events of the oldest queued frame, and mark them as handled. Return their number."""
        received = self._waiting[0]
        dispatch = self._dispatch()
        dispatched = 0 if dispatch is None else dispatch(received)
        # Removed afterwards: after an interrupt the next call continues with the events that are left.
        if (dispatch is None or not received.events) and self._waiting and self._waiting[0] is received:
            self._waiting.popleft()
        return dispatched

    def stop(self, timeout: float) -> None:
        """Stop the dispatch thread. Wait for a running listener up to ``timeout`` seconds."""
        self._stopping = True
        self._bell.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopping:
            if not self._waiting:
                with contextlib.suppress(Empty):
                    self._bell.get(timeout=IDLE_WAIT_S)
                continue
            try:
                self.dispatch_all()
            except BaseException:
                # SystemExit here would end only this thread, and no listener would run any more.
                logger.exception("a listener raised an exception that is no Exception")
            self._finished()
