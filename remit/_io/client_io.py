"""An open client: its link, session, queues, open requests and driver."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from remit._io.dispatcher import Dispatch, Dispatcher
from remit._io.drivers import IDLE_WAIT_S, CallerDriver, LinkLock, ThreadDriver, check_may_wait
from remit._io.pump import ClientPump
from remit._io.send_queue import SendQueue
from remit._patterns.event_router import EventRouter
from remit._patterns.names import PROGRESS, REPLY, REQUEST, REQUEST_NOTE, UNDECODABLE, UNSUBSCRIBE
from remit._patterns.request_reply import FutureResult, InlineResult, RequestClient
from remit._protocol.client_session import ClientSession, ConnectionState
from remit._protocol.outbox import WINDOW_BYTES, Outbox
from remit._protocol.session import FOREVER
from remit.codec import Codec, decode_event
from remit.errors import LinkClosed, RequestTimeout, SessionRefused, TransportError, Undelivered
from remit.event import Event
from remit.options import Options
from remit.transport import Link, Transport
from remit.transports.authenticated import share_rejected_counter

JOIN_TIMEOUT_S: Final = 2.0
"""Seconds that close() waits for each thread of the client, beyond the linger."""
PUMP_LOCK_TIMEOUT_S: Final = 1.0
"""Longest wait for another thread to leave the pump."""
LATE_S: Final = 0.5
"""Time after the deadline of a request in which the thread that has the link may still report why it failed."""

T = TypeVar("T")
_abandoned: list[ClientIO] = []
"""Inherited by a forked child and never freed there: a finalizer could touch sockets and locks of the parent."""


class ClientIO:
    """Everything that a client holds while it is open.

    `pump`, `wait`, `wait_and_pump` belong to the thread that drives the link; a `ThreadDriver` holds `link_lock`.
    """

    def __init__(
        self,
        connect: Callable[[], Link],
        options: Options,
        transport: Transport,
        *,
        codec: Codec,
        threaded: bool,
        router: EventRouter,
        dispatch: Dispatch,
    ) -> None:
        try:
            link = connect()
        except OSError as error:  # Transports translate the errors of their backends.
            raise _open_error(error) from error
        try:
            limits = link.capabilities
            self._codec = codec
            self.outbox = Outbox(
                codec,
                max_frame=limits.max_frame,
                window_events=options.window,
                window_bytes=min(WINDOW_BYTES, limits.window or WINDOW_BYTES),
                sequenced=options.delivery != "at_most_once",
                queue=options.queue,
                queue_bytes=options.queue_bytes,
            )
            self.machine = ClientSession(codec, self.outbox, max_frame=limits.max_frame, heartbeat=options.heartbeat)
            share_rejected_counter(transport, self.machine)
            self.link_pump = ClientPump(self.machine, link, connect)
            self.link_lock = LinkLock()
            self.send_queue = SendQueue(self.outbox, options, codec)
            self.requests = RequestClient(codec, self.outbox, self.send_queue.put, self._cancel_request)
            self.dispatcher = Dispatcher(router, dispatch, self.link_lock.interrupt)
            # Not in the router: during this constructor a signal handler may open another connection, which is used.
            self.dispatcher.handlers |= {
                REPLY: self.requests.on_reply,
                PROGRESS: self.requests.on_progress,
                REQUEST_NOTE: self.requests.on_note,
                UNDECODABLE: self.requests.on_undecodable,
            }
            self._why = ""
            """Why the client was not connected when it was closed."""
            self.requests.why = self.send_queue.why = lambda: self.why
            self.closing = False
            """Set when no further frame will be received: all waits end."""
            self._link_closed = False
            self._thread_driver: dict[int, ThreadDriver] = {}
            self._use(ThreadDriver(self) if threaded else CallerDriver(self))
            if not threaded:
                self.send_queue.serve = self.wait_and_pump
        except OSError as error:
            link.close(0.0)
            raise _open_error(error) from error
        except BaseException:
            link.close(0.0)
            raise

    def _use(self, driver: CallerDriver | ThreadDriver) -> None:
        self.driver = driver
        self.send_queue.wake = driver.wake
        self.send_queue.holds_link = lambda: driver.holds_link

    def pump(self) -> bool:
        """Receive, send, and route the received events. Return True if nothing is left to receive. Never waits."""
        drained = self._locked(self.link_pump.exchange)
        if self.send_queue.waiting or self.send_queue.on_room:
            self.send_queue.notify_room()
        # Without the pump's lock: callbacks of futures run here, and may emit, cancel and submit.
        self.dispatcher.process(self.machine, self.requests, time.monotonic())
        return bool(drained)

    def flush(self) -> None:
        """Send without receiving."""
        self._locked(self.link_pump.flush)

    def wait(self, seconds: float) -> None:
        """Wait for frames, `LinkLock.interrupt` or the deadline of a request, for at most ``seconds``."""
        # The pump's lock as well: a CallerDriver does not hold the link lock, and close() may run during this wait.
        self._locked(self._wait, seconds)

    def _wait(self, seconds: float) -> None:
        if not self.closing:
            if (deadline := self.requests.open.next_deadline) != FOREVER:
                seconds = min(seconds, deadline - time.monotonic())
            self.link_pump.wait(seconds, self.link_lock.waker)
        self.link_lock.waker.clear()

    def _locked(self, act: Callable[..., T], *args: Any) -> T | None:
        """Call a method of the pump with its lock held. Within such a call of the same thread, do nothing."""
        lock = self.link_pump.lock
        if lock._is_owned():  # type: ignore[attr-defined]
            # A signal handler or finalizer interrupts `act`, which may have read the queue already.
            self.link_lock.waker.wake()
            return None
        try:
            if not lock.acquire(False):
                # Without an I/O thread, another caller may wait for frames with the lock held.
                self.link_lock.waker.wake()
                if not lock.acquire(timeout=PUMP_LOCK_TIMEOUT_S):
                    return None
            result = act(*args)
            lock.release()
        except BaseException:
            self.link_pump.recover(waiting=act == self._wait)
            raise
        return result

    def wait_and_pump(self, seconds: float) -> None:
        """Wait for at most ``seconds``, then pump."""
        self.wait(seconds)
        self.pump()

    @property
    def pumps_here(self) -> bool:
        """Whether the calling thread is within `pump` or `wait`."""
        return self.link_pump.lock._is_owned() or self.dispatcher.routes_here  # type: ignore[attr-defined]

    @property
    def sendable(self) -> bool:
        """Whether an event can be sent now. If the link accepted no frame, it ends the next wait when it can send."""
        return not self.outbox.idle and self.machine.has_sendable_events() and not self.machine.session.send_blocked

    @property
    def settled(self) -> bool:
        """Whether all events are confirmed, or can no longer be."""
        return self.outbox.all_done or self.machine.refusal is not None or self.closing

    @property
    def connected(self) -> bool:
        """Whether a server has accepted this client on the present connection."""
        return self.machine.state is ConnectionState.ESTABLISHED

    @property
    def silence(self) -> float:
        """Seconds since the last frame from the server."""
        return time.monotonic() - self.machine.session.last_received_at

    def check_refused(self) -> None:
        """Raise SessionRefused if the server has refused this client."""
        if self.machine.refusal is not None:
            raise SessionRefused(self.machine.refusal.reason, self.machine.refusal.detail)

    def start(self) -> None:
        """Start a thread that pumps the link."""
        driver = self.driver
        if isinstance(driver, CallerDriver):
            # Of several threads, one supplies the driver.
            driver = self._thread_driver.setdefault(0, ThreadDriver(self))
            self._use(driver)
        driver.start()

    def tick(self, timeout: float) -> int:
        """Pump, after waiting up to ``timeout`` seconds; dispatch. Return the number of dispatched events."""
        if self.driver.running:
            return 0
        self.pump()
        if not len(self.dispatcher) and timeout > 0:
            self.wait_and_pump(timeout)
        count = self.dispatcher.dispatch_all()
        if count:
            self.pump()
        return count

    def request(self, *call: Any, **options: Any) -> Any:
        """Send a request and return its result, or raise its error. Takes the arguments of `RequestClient.submit`."""
        driver, result = self.driver, InlineResult()
        check_may_wait(driver)
        try:
            # Acquired before sending: then the request wakes no thread, and this thread receives the reply itself.
            acquired = driver.try_acquire()
            if acquired:
                self.requests.send(result, *call, **options)
                driver.run_until(result)
                driver.release()
        except BaseException:
            self.requests.withdraw(result)
            driver.recover()
            raise
        return result.result() if acquired else self._request_elsewhere(*call, **options)

    def _request_elsewhere(self, name: str, *call: Any, timeout: float, **options: Any) -> Any:
        """Send a request while another thread has the link, which receives the reply."""
        future, deadline = FutureResult(), time.monotonic() + timeout + LATE_S
        try:
            self.requests.send(future, name, *call, timeout=timeout, **options)
            while not future.done():
                left = deadline - time.monotonic()
                if left <= 0:
                    # The thread that has the link expires requests; it may be busy in a callback.
                    raise RequestTimeout(f"no answer to {name!r} in time: a callback of a future blocks this client")
                with contextlib.suppress(TimeoutError):
                    future.exception(min(left, IDLE_WAIT_S))
        except BaseException:
            self.requests.withdraw(future)
            raise
        return future.result()

    def _cancel_request(self, request: int) -> None:
        self.outbox.abandoned.append(request)
        if not self.closing:
            self.link_lock.interrupt()

    def stats(self) -> dict[str, Any]:
        """Return counters of the queue, the window and the connection."""
        session = self.machine.session
        return {
            "why": self.why,
            "queued": self.outbox.unframed,
            "queued_bytes": self.outbox.unframed_bytes,
            "requests": len(self.requests.open),
            "unconfirmed": self.outbox.unconfirmed,
            "emitted": self.outbox.last + self.outbox.unframed,
            "connections": session.generation,
            "duplicates": session.inbox.duplicates,
            "dropped": self.send_queue.dropped.total(),
            "rejected": self.machine.rejected.total() + self.dispatcher.malformed,
        }

    def drain(self, timeout: float, *, quiet: bool = False) -> bool:
        """Wait until all events are confirmed. Return False after ``timeout`` seconds, or if one can never be sent.

        Raises SessionRefused and WouldDeadlock, unless ``quiet``.
        """
        deadline = time.monotonic() + timeout
        while not self.outbox.all_done:
            if self.machine.refusal is not None:
                if not quiet:
                    self.check_refused()
                return False
            left = deadline - time.monotonic()
            # A callback of a future runs in the thread that would have to pump: close() there cannot wait.
            if left <= 0 or self.closing or (quiet and self.driver.holds_link):
                return False
            self.driver.progress(left)
        return not self.outbox.oversized

    def close(self, linger: float) -> Undelivered | None:
        """Stop the threads and close the link. Return the unconfirmed events as an error to raise, or None."""
        # Flags first, then wake-ups: a thread that wakes must see that it is to end.
        self.closing = True
        self.send_queue.close()
        self.driver.stop(JOIN_TIMEOUT_S)
        self._why = self.link_pump.why  # Closing the link ends the connection.
        self.dispatcher.stop(JOIN_TIMEOUT_S)
        # The threads have ended, or hang in a listener or callback: no events follow BYE.
        self._locked(self._close_link, linger)
        self.requests.close()
        return self.undelivered()

    def end_waits(self) -> None:
        """End the wait of `drain` in another thread: `close` then reports what is unconfirmed."""
        self.closing = True
        self.driver.stop(0.0)

    @property
    def why(self) -> str:
        """Why this client is not connected; empty if it is."""
        return self._why if self.closing else self.link_pump.why

    def _close_link(self, linger: float) -> None:
        if self._link_closed:
            return
        self.machine.queue_bye()
        with contextlib.suppress(LinkClosed):  # An interrupted close() may have closed the link.
            self.link_pump.flush()
        self.link_pump.close(linger)
        self.link_lock.waker.close()
        self._link_closed = True

    def undelivered(self) -> Undelivered | None:
        """Return the unconfirmed events as an error, or None."""
        fates: dict[str, list[Event]] = {"received": [], "unknown": [], "never_sent": []}
        for fate, data in self.outbox.unfinished():
            wire = decode_event(self._codec, data)
            # A request has raised or set its own error, and a subscription ends with the session.
            if wire.name not in (REQUEST, UNSUBSCRIBE):
                fates[fate].append(wire.event())
        if not any(fates.values()):
            return None
        why = self._why
        if self.machine.refusal is None and not self.machine.instance:
            why = f"no server was met: {why or 'is one there, and is it ticked?'}"
        elif not why and not fates["never_sent"]:
            why = "the server has not handled them: is it ticked?"
        return Undelivered(why=why, **fates)

    def abandon(self) -> None:
        """In a forked child: keep this object without using it, until the child ends."""
        _abandoned.append(self)


def _open_error(error: OSError) -> TransportError:
    advice = "close clients that are not used, or raise ulimit -n"
    return TransportError(f"cannot open a client: {error.strerror}; {advice}")
