"""The `Server`, which opens a location and dispatches received events to listeners when it is ticked."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from remit._io.server_io import ServerIO
from remit._patterns.names import PROGRESS, REJECTED, REPLY, REQUEST, SUBSCRIBE, UNSUBSCRIBE
from remit._patterns.pubsub import Publisher
from remit._patterns.rejections import Rejections
from remit._patterns.request_reply import RequestServer, error_reply, send_reply, session_of
from remit._protocol.session import Session
from remit.codec import EventMessage
from remit.config import resolve
from remit.errors import CodecError, EmitError, FrameTooLarge, LinkClosed, LocationInUse, ReentrantTick
from remit.event import Event, Sender, parts_of
from remit.listeners import ListenerRegistry, OnError, check_name
from remit.location import Location
from remit.options import check_count, resolve_options
from remit.plugins import find_transport
from remit.transport import Wakeable, register_after_fork
from remit.transports.authenticated import with_authentication

if TYPE_CHECKING:
    from remit._io.async_server import AsyncServerLoop

__all__ = ["Server"]

DROPPABLE: Final = frozenset({REPLY, PROGRESS})
"""Reserved events that are not queued for a client for which too many bytes are queued."""
MAX_TICK_S: Final = 0.25
"""Seconds after which a tick without ``limit`` returns, although more events keep arriving."""
RUN_WAIT_S: Final = 1.0
"""Upper bound of one wait in `Server.run` and `Broker.run`."""
MAX_CONCURRENCY: Final = 1000
"""Async listeners that run at a time, unless `Server.serve` gets another number."""
FOREVER: Final = float("inf")


class Server(ListenerRegistry):
    """Receives events from many clients. The constructor opens the location; `tick` and `run` dispatch in their caller.

    ``location`` is a URL, a `Location`, a name from the configuration, or None for the configured default. A keepalive
    thread serves the link while no thread ticks; ``threaded=False`` omits it. Options that are not given are taken
    from the query of the location. ``queue`` and ``queue_bytes`` bound what waits for each client, and ``queue_bytes``
    what each client has sent and no tick has dispatched; ``keep_bytes`` the last values of ``publish(keep=True)``. With
    a ``key`` or ``key_file`` only clients with the same key are accepted. A pickled server opens its location at its
    first use. Raises LocationError, PluginError, LocationInUse, TransportError.
    """

    def __init__(
        self,
        location: str | Location | None = None,
        *,
        on_error: OnError | None = None,
        threaded: bool = True,
        queue: int | None = None,
        queue_bytes: int | None = None,
        keep_bytes: int | None = None,
        linger: float | None = None,
        session_ttl: float | None = None,
        key: str | bytes | None = None,
        key_file: str | Path | None = None,
    ) -> None:
        super().__init__(on_error)
        self._unheard_hint = "check the name at the sender, or add a listener by server.add_listener()"
        self._given = {
            "queue": queue,
            "queue_bytes": queue_bytes,
            "keep_bytes": keep_bytes,
            "linger": linger,
            "session_ttl": session_ttl,
            "key": key,
            "key_file": key_file,
        }
        self._threaded = threaded
        self._requested = resolve(location)
        self._location = self._requested
        self._io: ServerIO | None = None
        self._closing: ServerIO | None = None
        """What `close` has not closed completely, because of an interrupt."""
        self._closed = self._stopping = False
        self._loop_server: AsyncServerLoop | None = None
        """Serves on an event loop, within `serve`."""
        self._publisher = Publisher(self._mark_writable)
        self._requests = RequestServer(self._router, self._call_listeners, self._post, self._report_failed_request)
        self._requests.may_repeat = lambda: self._begin is not None
        self._rejections = Rejections(self._router, self._report_error, self._reject)
        self._router.register(UNSUBSCRIBE, self._unsubscribe, repeatable=True)
        self._router.request_handlers[SUBSCRIBE] = self._publisher.subscribe
        self._router.session_closed.append(self._publisher.remove_session)
        register_after_fork(self._after_fork)
        if not getattr(_unpickling, "active", False):
            self._open()

    def _open(self) -> ServerIO:
        if self._closed:
            raise LinkClosed(f"the server on {self._location} is closed")
        transport = find_transport(self._requested.scheme)
        self._options, address = resolve_options(self._requested, transport.options, self._given)
        transport = with_authentication(transport, self._options.key)
        self._publisher.keep_bytes, self._publisher.queue_bytes = self._options.keep_bytes, self._options.queue_bytes
        make = partial(ServerIO, transport, self._requested, address, self._options, self._router, self._threaded)
        io = None
        try:
            try:
                io = make()
            except LocationInUse:
                gc.collect()  # Perhaps by a server that an interrupted block has dropped, see `__del__`.
                io = make()
            self._location, self._io = io.location, io
            return io
        except BaseException:
            self._io = None
            if io is not None:
                io.close(0.0)
            raise

    @property
    def location(self) -> Location:
        """Location for clients, with the port that the system has chosen."""
        if self._io is None and not self._closed:
            self._open()
        return self._location

    # -- dispatch ----------------------------------------------------------------------------------------------

    def tick(self, limit: int | None = None) -> int:
        """Dispatch the events that have arrived, at most ``limit``. Return their number. Never waits.

        Raises ReentrantTick in a listener of this server and while an event loop serves it, LinkClosed after `close`.
        """
        io = self._io or self._open()
        if io.loop_thread and self._loop_server is not None:
            self._loop_server.release()  # Raises ReentrantTick while it serves.
        lock = io.tick_lock
        if lock._is_owned() or io.link_pump.lock._is_owned():  # type: ignore[attr-defined]
            raise ReentrantTick("a listener or signal handler called tick() within tick() or wait() of its server")
        # Without `with`: a signal handler may raise before its __exit__ releases the lock.
        try:
            if not lock.acquire(blocking=False):
                return 0
            io.tick_thread = threading.get_ident()
            dispatched = self._tick(io, limit)
            lock.release()
        except BaseException as error:
            if isinstance(error, LocationInUse) and error is not io.link_pump.location_error:
                io.failure = error
            while lock._is_owned():  # type: ignore[attr-defined]
                lock.release()
            io.recover()
            raise
        if io.close_requested is not None:
            io.finish_close()
        return dispatched

    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        """Wait up to ``timeout`` seconds. Return earlier if there may be events, or if ``waker`` is readable."""
        (self._io or self._open()).wait(timeout, waker)

    def run(self, timeout: float | None = None) -> None:
        """Tick for ``timeout`` seconds, or until a listener or another thread calls `stop` or `close`."""
        self._run(self.tick, self.wait, timeout)

    def _run(self, tick: Callable[[], int], wait: Callable[[float], None], timeout: float | None) -> None:
        deadline = FOREVER if timeout is None else time.monotonic() + timeout
        if self._io is None and not self._closed:
            self._open()
        try:
            while not self._stopping and self._io is not None and (left := deadline - time.monotonic()) > 0:
                try:
                    if not tick() and not self._stopping:
                        wait(min(left, RUN_WAIT_S))
                except LinkClosed:
                    if self._io is not None:
                        raise
        finally:
            self._stopping = False

    async def serve(self, *, concurrency: int = MAX_CONCURRENCY) -> None:
        """Dispatch events on the running event loop until cancelled, or until `stop` or `close`.

        Listeners may be async. Events of one client are handled in order, clients and requests concurrently, with up
        to ``concurrency`` async listeners at a time. Raises the error of a lost location, LinkClosed after `close`,
        ReentrantTick while another `serve` is active.
        """
        from remit._io.async_server import AsyncServerLoop  # Imports asyncio: slow, and needed only here.

        check_count("concurrency", concurrency)
        loop_server = AsyncServerLoop(self, self._io or self._open(), concurrency)
        try:
            await loop_server.serve()
        except BaseException:
            loop_server.detach()  # Again, after an interrupt of the first time.
            raise

    def stop(self) -> None:
        """Make `run` or `serve` return, or the next one if none is active. Safe from any thread."""
        self._stopping = True
        self.wake()

    def wake(self) -> None:
        """Make `wait` return. Safe from any thread."""
        if self._io is not None:
            self._io.waker.wake()

    def _tick(self, io: ServerIO, limit: int | None) -> int:
        pump, ready = io.link_pump, io.machine.ready
        dispatched = 0
        bound: float | None = None
        while self._io is io:  # A listener may close the server.
            pump.lock.acquire()
            drained = pump.exchange(hold_back=True)
            pump.lock.release()
            io.pumped_at = now = time.monotonic()
            # Without the lock: listeners take their time, and the keepalive thread must be able to pump.
            while ready:
                if limit is not None and dispatched >= limit:
                    break
                received = ready[0]
                if io.machine.closed:
                    io.report_sessions()
                left = None if limit is None else limit - dispatched
                session = received.session
                dispatched += self._dispatch_frame(received, session.sender or io.sender_of(session), left)
                io.machine.writable[session] = None
                # Removed afterwards: after an interrupt the next tick continues with the events that are left.
                if not received.events and ready and ready[0] is received:
                    ready.popleft()
            if io.machine.closed or io.machine.cancelled_requests:
                io.report_sessions()
            bound = now + MAX_TICK_S if bound is None else bound
            if drained or (limit is not None and dispatched >= limit) or (limit is None and now > bound):
                break
        # One flush after all listeners, so that replies and acknowledgements share frames.
        self._flush(io)
        return dispatched

    def _flush(self, io: ServerIO) -> None:
        if io.machine.writable and self._io is io:
            io.link_pump.lock.acquire()
            io.link_pump.flush()
            io.link_pump.lock.release()

    def emit(self, name: str | Event, /, *args: Any, **kwargs: Any) -> None:
        """Dispatch an event to the listeners of this server, in this call. It is not sent to clients."""
        event = EventMessage(*parts_of(name, args, kwargs))  # type: ignore[arg-type]
        check_name(event.name)
        self._dispatched += 1
        self._dispatch_pending([event], iter((event,)), None, redelivered=False)

    # -- sending to clients ------------------------------------------------------------------------------------

    def publish(self, name: str | Event, /, *args: Any, keep: bool = False, **kwargs: Any) -> int:
        """Send an event to every client with a matching subscription. Return their number. Never waits for a client.

        With ``keep`` the server stores it as the last value of that name, for later subscribers with ``last=True``.
        Safe from any thread. Raises CodecError, FrameTooLarge, LinkClosed.
        """
        io = self._io or self._open()
        return self._publisher.publish(*parts_of(name, args, kwargs), keep=keep, largest=io.max_event)

    def emit_to(self, peer: Sender | str, name: str | Event, /, *args: Any, **kwargs: Any) -> None:
        """Emit an event to one client, given by its `Sender` or its id. It is acknowledged like any other event.

        Raises EmitError if the session of the client has ended, QueueFull, CodecError, FrameTooLarge.
        """
        io = self._io or self._open()
        event = parts_of(name, args, kwargs)
        io.emit(io.find_session(peer, event[0]), *event)

    def _post(self, session: Session, name: str, args: tuple[Any, ...]) -> None:
        """Emit a reserved event. The bound on events does not apply: there are no more replies than requests."""
        (self._io or self._open()).emit(session, name, args, {}, bounded=False, droppable=name in DROPPABLE)

    def _reject(self, sender: Sender | None, name: str, first: Any, reason: str) -> None:
        """Send an error for an event that could not be decoded."""
        session = session_of(sender)
        if name == REQUEST and isinstance(first, int):
            send_reply(self._post, session, first, error_reply(session.codec, CodecError(reason)))
        else:
            with contextlib.suppress(EmitError, FrameTooLarge):  # The session may have ended.
                self._post(session, REJECTED, (name, reason))

    def _mark_writable(self, session: Session) -> None:
        (self._io or self._open()).mark_writable(session)

    def _unsubscribe(self, message: EventMessage, sender: Sender | None, _: bool) -> None:
        self._publisher.unsubscribe(session_of(sender), *message.args)

    # -- state -------------------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether this server holds its location. False before the first use of a copy, and after a loss."""
        io = self._io
        return io is not None and io.failure is None and io.link_pump.location_error is None

    @property
    def _drained_at(self) -> float:
        """Monotonic time of the last read that emptied the link. Raises LinkClosed."""
        return (self._io or self._open()).link_pump.drained_at

    def stats(self) -> dict[str, Any]:
        """Return counters of dispatched, rejected and duplicate events, of errors of listeners, and of sessions.

        ``why`` is the reason why clients cannot reach this server; empty if they can.
        """
        counters: dict[str, Any] = {
            "dispatched": self._dispatched,
            "listener_errors": self._errors,
            "unheard": self._unheard,
            "unanswered": self._requests.skipped,
            "failed": self._requests.failed,
            "undecodable_there": self._rejections.count,
            "published": self._publisher.published,
            "subscriptions": len(self._publisher),
            "publications_dropped": self._publisher.dropped,
            "publications_bytes": self._publisher.queued_bytes,
            "kept_bytes": self._publisher.kept_bytes,
            "sessions": 0,
        }
        if self._io is not None:
            machine = self._io.machine
            # list() and dict() copy under the GIL: another thread may pump at the same time.
            sessions, rejected = list(machine.sessions.values()), dict(machine.rejected)
            counters["sessions"] = len(sessions)
            counters["why"] = self._io.link_pump.why
            counters["queued"] = sum(session.outbox.unframed for session in sessions)
            counters["queued_bytes"] = sum(session.outbox.unframed_bytes for session in sessions)
            counters["waiting"] = sum(len(received.events) for received in list(machine.ready))
            counters["waiting_bytes"], counters["dropped"] = machine.waiting_bytes, machine.dropped
            if (loop_server := self._loop_server) is not None:
                counters["waiting"] += loop_server.waiting
            counters["duplicates"] = sum(session.inbox.duplicates for session in sessions)
            counters["rejected"] = sum(rejected.values())
            counters.update({f"rejected_{reason}": count for reason, count in rejected.items()})
        return counters

    # -- closing -----------------------------------------------------------------------------------------------

    def close(self, linger: float | None = None) -> None:
        """Acknowledge handled events, notify the clients, and close the location within ``linger`` seconds. Idempotent.

        Events that were not dispatched are not acknowledged: the clients send them to the next server.
        """
        self._closed = True  # First: a tick() in another thread must not open the location again.
        io = self._io or self._closing
        self._closing, self._io = io, None
        if io is not None:
            try:
                io.close(self._options.linger if linger is None else linger)
            except BaseException:
                io.close(0.0)  # After an interrupt the location must not stay occupied.
                raise
            self._closing = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # The location of a dropped server must not stay occupied. At exit the thread that holds the link may be gone.
        if getattr(self, "_io", None) is not None and not sys.is_finalizing():
            with contextlib.suppress(Exception):  # Finalizers of the same garbage may have closed parts of the link.
                self.close(0.0)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (type(self), self._requested, self._threaded, self._given)

    def __repr__(self) -> str:
        state = "open" if self._io else "closed" if self._closed else "not opened yet"
        if self._io is not None and (why := self._io.link_pump.why):
            state += f": {why}"
        return f"<Server {self._requested} {state}>"

    def _after_fork(self) -> None:
        """In a forked child: replace locks that threads of the parent may hold. The copy refuses to tick."""
        self._publisher.after_fork()
        if self._io is not None:
            self._io.after_fork()


_unpickling = threading.local()


def _reopen(kind: type[Server], location: Location, threaded: bool, given: dict[str, Any]) -> Server:
    """Rebuild a pickled server without opening its location."""
    _unpickling.active = True
    try:
        return kind(location, threaded=threaded, **given)
    finally:
        _unpickling.active = False
