"""An open server: its link, sessions, keepalive thread, and the sending of events to clients."""

from __future__ import annotations

import contextlib
import functools
import queue
import selectors
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Final

from remit._io.pump import ServerPump
from remit._patterns.event_router import EventRouter
from remit._protocol.outbox import HEAD_BYTES, WINDOW_BYTES, Outbox
from remit._protocol.server_sessions import ServerSessions
from remit._protocol.session import Session
from remit.codec import Codec, shortened
from remit.errors import EmitError, FrameTooLarge, LinkClosed, QueueFull, TransportError
from remit.event import NO_HEADERS, Sender
from remit.location import Location
from remit.options import Options
from remit.transport import Transport, Wakeable, Waker
from remit.transports.authenticated import share_rejected_counter

SEND_DELAY_S: Final = 0.002
"""Delay before the keepalive thread sends queued events, if no thread calls tick() or wait() by then."""
SEND_LOCK_TIMEOUT_S: Final = 0.05
"""Time that the keepalive thread waits for the link before it leaves queued events to the next round."""
KEEPALIVE_INTERVAL_S: Final = 0.3
"""Time after the last tick() or wait() at which the keepalive thread pumps the link."""
KEEPALIVE_PUMPS: Final = 16
"""Most pumps of the keepalive thread in a row: a tick() must not wait long for the link."""
LIVENESS_TIMEOUT_S: Final = 15.0
"""Seconds of silence after which clients may replace their link to a server with a keepalive thread."""
BYE_TIMEOUT_S: Final = 0.5
"""Time in close() for clients to read pending events and BYE: some backends drop unread frames."""
FULL_POLL_INTERVAL_S: Final = 0.01
"""Interval of attempts to send to a client whose link was full."""
SMALL_REPLY_BYTES: Final = 1024
"""Size up to which a reply is queued beyond the bound of its client's queue."""
JOIN_TIMEOUT_S: Final = 1.0
"""Seconds that close() waits for the keepalive thread."""

# Plain weak references: each request reads this set, and WeakSet is implemented in Python and slower than the search.
_open: set[weakref.ref[ServerIO]] = set()


def ticked_here(location: Location) -> bool:
    """Return True if the calling thread ticks an open server on this location, itself or by its event loop."""
    if not _open:
        return False
    here = threading.get_ident()
    return any(
        here in (io.tick_thread, io.loop_thread) and io.location == location
        for each in tuple(_open)
        if (io := each()) is not None
    )


class ServerIO:
    """Everything that a server holds while it is open.

    With ``threaded`` a keepalive thread pumps the link while no thread ticks or waits. It dispatches nothing.
    """

    def __init__(
        self,
        transport: Transport,
        location: Location,
        address: Location,
        options: Options,
        router: EventRouter,
        threaded: bool,
    ) -> None:
        self.closed = False
        link = None
        try:
            link = transport.bind(address)
            limits = link.capabilities
            self.location = link.location.replace(options=location.options)
            """Location for clients, with the port that the system has chosen."""
            self._router = router
            self._options = options
            self._max_frame = limits.max_frame
            self.max_event = limits.max_frame - HEAD_BYTES
            """Largest encoded event in bytes."""
            self._window_bytes = min(WINDOW_BYTES, limits.window or WINDOW_BYTES)
            self.machine = ServerSessions(
                self._new_outbox,
                max_frame=limits.max_frame,
                liveness_timeout=LIVENESS_TIMEOUT_S if threaded else 0.0,
                session_ttl=options.session_ttl,
                sees_peers=limits.sees_peers,
                queue_bytes=options.queue_bytes,
            )
            share_rejected_counter(transport, self.machine)
            self.link_pump = ServerPump(self.machine, link)
            self.waker = Waker()
            self.tick_lock = threading.RLock()
            """Held by the thread that ticks. Like the lock of the pump it knows its owner, see `resume`."""
            self.tick_thread = 0
            """Ident of the thread that ticks, or was the last to tick."""
            self.loop_thread = 0
            """Ident of the thread whose event loop serves; 0 without one."""
            self.failure: Exception | None = None
            """Error by which the location was lost, or which has ended the service of an event loop."""
            self.pumped_at = time.monotonic()
            """Time of the last pump, or time until which a thread waits on the link."""
            self.close_requested: float | None = None
            """Linger of a `close` that a signal handler called while its own thread held the link."""
            self._wait_thread = 0
            """Ident of the thread that was the last to wait."""
            self._user_waker: Wakeable | None = None
            self._combined_waker: _CombinedWaker | None = None
            self._inherited = False
            # No Event: a signal handler or finalizer may call set() within set(), which takes a lock.
            self._requests: queue.SimpleQueue[None] = queue.SimpleQueue()
            """Wakes the keepalive thread."""
            self._send_requested = False
            self._thread: threading.Thread | None = None
            if threaded:
                # A weak reference: the thread must not keep a server alive that the program has dropped.
                args = weakref.ref(self), self._requests
                self._thread = threading.Thread(target=_keep_alive, args=args, name="remit-keeper", daemon=True)
                self._thread.start()
            _open.add(weakref.ref(self, _open.discard))
        except BaseException:
            self.closed = True
            if link is not None:
                link.close(0.0)
            raise

    # -- ticking -----------------------------------------------------------------------------------------------

    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        """Send queued events, then wait for frames or a waker, for at most ``timeout`` seconds."""
        pump, machine = self.link_pump, self.machine
        if pump.lock._is_owned():  # type: ignore[attr-defined]
            return  # In a signal handler or finalizer, within tick() or wait() of this thread.
        try:
            self._wait_thread = threading.get_ident()
            pump.lock.acquire()
            if machine.writable:
                pump.flush()
            if machine.ready or machine.writable:
                timeout = min(timeout, 0.0 if machine.ready else FULL_POLL_INTERVAL_S)
            self.pumped_at = time.monotonic() + timeout
            pump.wait(timeout, self.waker if waker is None else self._with(waker))
            self.waker.clear()
            pump.lock.release()
        except BaseException:
            self.recover()
            raise
        if self.close_requested is not None:
            self.finish_close()

    def recover(self) -> None:
        """Release the link after an exception at any line of the outermost call of this thread that uses it."""
        self.link_pump.recover()
        self.pumped_at = time.monotonic()  # No thread waits any more: the keepalive thread goes on.
        self.finish_close()
        self.mark_unsent()

    def mark_unsent(self) -> None:
        """Have everything sent that an interrupted call has queued."""
        for session in list(self.machine.sessions.values()):
            if session.outbox.pending or session.ack_due:
                self.machine.writable[session] = None
        self.request_send()

    def finish_close(self) -> None:
        """Close the link if a signal handler has requested it while this thread held the link."""
        if self.close_requested is not None:
            self.close(self.close_requested)

    def report_sessions(self, *dispatching: Session) -> None:
        """Call the handlers of the router for ended sessions and cancelled requests.

        A session is reported after its last event: not while its events wait, or while they are ``dispatching``. An
        event handled after that report would create state that nothing removes.
        """
        machine = self.machine
        for session in machine.pop_closed(dispatching):
            for on_closed in tuple(self._router.session_closed):
                on_closed(session)
        while machine.cancelled_requests:
            cancelled = machine.cancelled_requests[0]
            for on_cancelled in tuple(self._router.request_cancelled):
                on_cancelled(*cancelled)
            machine.cancelled_requests.popleft()

    def _with(self, waker: Wakeable) -> Wakeable:
        """Return one descriptor that is readable when the waker of the user or our own is."""
        # Compared by identity: the number of a closed descriptor may belong to another waker now.
        if self._combined_waker is None or self._user_waker is not waker:
            if self._combined_waker is not None:
                self._combined_waker.close()
            self._user_waker, self._combined_waker = waker, _CombinedWaker(waker, self.waker)
        return self._combined_waker

    # -- sending to clients ------------------------------------------------------------------------------------

    def _new_outbox(self, codec: Codec, max_frame: int) -> Outbox:
        return Outbox(
            codec,
            max_frame=min(self._max_frame, max_frame),
            window_events=self._options.window,
            window_bytes=self._window_bytes,
            queue=self._options.queue,
            queue_bytes=self._options.queue_bytes,
            small_bytes=0,
        )

    def sender_of(self, session: Session) -> Sender:
        """Return the client of a session as listeners receive it."""
        if session.sender is None:
            session.sender = Sender(session, functools.partial(self.emit, session))
        return session.sender

    def find_session(self, peer: Sender | str, name: str) -> Session:
        """Return the session of a client, to emit event ``name``. Raises EmitError, TypeError."""
        identifier = peer.id if isinstance(peer, Sender) else peer
        if not isinstance(identifier, str):
            raise TypeError(f"name a client by the sender of an event or by the sender's id, not by {peer!r}")
        with contextlib.suppress(ValueError):
            session = self.machine.sessions.get(bytes.fromhex(identifier))
            if session is not None:
                return session
        raise EmitError(f"cannot emit {name!r}: no client here has the id {shortened(identifier)}")

    def emit(
        self,
        session: Session,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        headers: Mapping[str, Any] = NO_HEADERS,
        *,
        bounded: bool = True,
        droppable: bool = False,
        now: bool = False,
    ) -> None:
        """Queue an event for one client; with ``now``, send it in this thread.

        Raises EmitError if the session has ended, QueueFull if ``bounded`` or, by the bytes alone, ``droppable``,
        CodecError, FrameTooLarge, LinkClosed.
        """
        if self.closed:
            raise LinkClosed(f"the server on {self.location} is closed")
        if self.machine.sessions.get(session.id) is not session:
            raise EmitError(f"cannot emit {name!r}: the session of {session.id.hex()[:8]} has ended")
        data = session.codec.encode(name, args, kwargs, headers)
        outbox = session.outbox
        if len(data) > outbox.max_frame - HEAD_BYTES:
            raise FrameTooLarge(f"event {shortened(name)} has {len(data)} bytes, over {outbox.max_frame} a frame")
        if not outbox.idle:
            # The reply that reports a refused one needs room too: small replies have as much again.
            extra = outbox.queue_bytes + outbox.max_frame if len(data) <= SMALL_REPLY_BYTES else 0
            if (bounded and outbox.is_full(len(data))) or (droppable and outbox.exceeds_bytes(len(data), extra)):
                raise QueueFull(
                    f"{shortened(name)} was not queued: {outbox.unframed} events wait for {session.id.hex()[:8]}, "
                    "which does not keep up; emit less, or raise queue and queue_bytes"
                )
        pump = self.link_pump
        now = now and not pump.lock._is_owned()  # type: ignore[attr-defined]
        try:
            outbox.count_bytes(len(data))
            outbox.pending.append(data)
            if now:
                self.machine.writable[session] = None
            else:
                self.mark_writable(session)
        except BaseException:
            self.mark_unsent()
            raise
        if not now:
            return
        try:
            pump.lock.acquire()
            pump.flush()
            pump.lock.release()
        except BaseException:
            self.recover()
            raise

    def mark_writable(self, session: Session) -> None:
        """Schedule the queued events of a session: the next tick() or wait() sends them, or the keepalive thread."""
        self.machine.writable[session] = None
        here = threading.get_ident()
        if self.tick_thread != here or self._wait_thread not in (0, here):
            # Another thread ticks or waits: wake it. It may be busy with other work, so ask the keepalive thread too.
            self.waker.wake()
            self.request_send()
        elif not self.tick_lock._is_owned():  # type: ignore[attr-defined]
            # This thread ticks, and is between two ticks. Within a tick nothing is needed: a tick ends with a flush.
            self.request_send()

    def request_send(self) -> None:
        """Ask the keepalive thread to send queued events after `SEND_DELAY_S`. Safe from any thread."""
        if not self._send_requested:
            self._requests.put(None)
            self._send_requested = True

    # -- the keepalive thread ----------------------------------------------------------------------------------

    def keep_alive(self) -> None:
        """Send queued events if asked to; pump the link if no thread has done so for a while. Dispatches nothing."""
        pump = self.link_pump
        # Cleared before sending: an event that is queued from now on makes a new request.
        self._send_requested = False
        send = bool(self.machine.writable)
        idle = time.monotonic() - self.pumped_at >= KEEPALIVE_INTERVAL_S
        if not (send or idle) or not pump.lock.acquire(timeout=SEND_LOCK_TIMEOUT_S if send else 0.0):
            return
        try:
            # An error of the link is left to tick(), which gets it again.
            with contextlib.suppress(TransportError):
                if self.closed:
                    return
                if send:
                    pump.flush()
                for _ in range(KEEPALIVE_PUMPS if idle else 0):
                    if pump.exchange():
                        break
        finally:
            pump.lock.release()

    # -- closing -----------------------------------------------------------------------------------------------

    def close(self, linger: float) -> None:
        """Send pending events and BYE, then close the link within ``linger`` seconds.

        In a forked child only the copies of the descriptors are closed.
        """
        self.closed = True
        _open.discard(weakref.ref(self))
        self._requests.put(None)
        pump = self.link_pump
        if pump.lock._is_owned():  # type: ignore[attr-defined]
            # In a signal handler that has interrupted tick() or wait() of this thread, which closes the link then.
            self.close_requested = linger
            self.waker.wake()
            return
        if not self._inherited:
            self.waker.wake()  # A thread that waits holds the lock.
        try:
            pump.lock.acquire()
            if not self._inherited:
                with contextlib.suppress(TransportError):  # Another server may have taken the location over.
                    self._send_bye(time.monotonic() + min(linger, BYE_TIMEOUT_S))
            pump.close(linger)
            self.close_requested = None
            pump.lock.release()
        except BaseException:
            pump.recover()
            raise
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(JOIN_TIMEOUT_S)
        if self._combined_waker is not None:
            self._combined_waker.close()
        self.waker.close()

    def _send_bye(self, deadline: float) -> None:
        pump, machine = self.link_pump, self.machine
        with contextlib.suppress(TransportError):
            # First: libzmq 4.3.5 may abort if what is sent last is for a client that has just closed.
            pump.wait(0.0)  # It polls, which receive() may omit.
            pump.exchange()
        pump.flush()
        while machine.has_unreceived and (left := deadline - time.monotonic()) > 0:
            pump.wait(min(left, FULL_POLL_INTERVAL_S))
            pump.exchange()
        machine.queue_bye("closed")
        pump.flush()
        # Until the clients confirm BYE: some backends drop unread frames when the link closes.
        while machine.has_clients and (left := deadline - time.monotonic()) > 0:
            pump.wait(min(left, FULL_POLL_INTERVAL_S if machine.writable else left))
            pump.exchange()

    def after_fork(self) -> None:
        """In a forked child: replace locks that threads of the parent may hold. The child has no keepalive thread."""
        self.link_pump.lock, self.tick_lock = threading.RLock(), threading.RLock()
        self.tick_thread = 0  # A thread of the child may have the ident of the thread that ticked in the parent.
        self._requests, self._send_requested = queue.SimpleQueue(), False
        self._thread, self._inherited = None, True


class _CombinedWaker:
    """Readable when one of several wakers is: the descriptor of a selector. The descriptor is -1 after `close`."""

    def __init__(self, *wakers: Wakeable) -> None:
        self._selector: selectors.BaseSelector | None = selectors.DefaultSelector()
        for waker in wakers:
            self._selector.register(waker.fileno(), selectors.EVENT_READ)

    def fileno(self) -> int:
        return -1 if self._selector is None else self._selector.fileno()  # type: ignore[attr-defined]

    def close(self) -> None:
        selector, self._selector = self._selector, None
        if selector is not None:
            selector.close()


def _keep_alive(reference: weakref.ref[ServerIO], requests: queue.SimpleQueue[None]) -> None:
    """Run the keepalive thread until the server is closed or collected."""
    while True:
        with contextlib.suppress(queue.Empty):
            requests.get(timeout=KEEPALIVE_INTERVAL_S)
            # By the end of the delay a tick() or wait() has usually sent the events, and many requests have become one.
            time.sleep(SEND_DELAY_S)
        io = reference()
        if io is None or io.closed:
            return
        io.keep_alive()
        del io
