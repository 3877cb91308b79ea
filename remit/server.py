"""Server: the end that listens: opens a location, and dispatches what arrives each time it is ticked."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from remit.answering import Answering, session_of
from remit.asking import REQUEST
from remit.codec import Codec, Wire
from remit.config import resolve
from remit.endpoint import ServerEndpoint
from remit.errors import EmitError, FrameTooLarge, LinkClosed, QueueFull, ReentrantTick
from remit.keeping import PATIENCE, Keeping
from remit.keyed import count_with, signing
from remit.listeners import Listening, OnError
from remit.location import Location
from remit.plugins import find_transport
from remit.protocol.acceptor import Acceptor
from remit.protocol.outbox import HEAD_BYTES, WINDOW_BYTES, Outbox
from remit.protocol.session import Received, Session
from remit.publishing import SUBSCRIBE, UNSUBSCRIBE, Publishing
from remit.sender import Sender
from remit.settings import settle
from remit.transport import Wakeable

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Server", "ticked_here"]

TICK_BOUND: Final = 0.25
"""Seconds after which a tick without ``limit`` returns although more keeps arriving."""
RUN_WAIT: Final = 1.0
"""Seconds that `Server.run` waits at a time."""

_SERVERS: weakref.WeakSet[Server] = weakref.WeakSet()


class Server(Listening):
    """The end that listens. Opens at once; what arrives is dispatched by `tick` or `run`, in the caller's thread.

    ``location`` is a URL, a `Location`, a name from the configuration, or None for the configured default. A small
    thread keeps the link alive while nobody ticks; ``threaded=False`` does without. Options not given are taken from
    the location's query. With a ``key``, or a ``key_file`` that holds it, only clients with the same one are heard.
    Raises LocationError, PluginError, LocationInUse, TransportError.
    """

    def __init__(
        self,
        location: str | Location | None = None,
        *,
        on_error: OnError | None = None,
        threaded: bool = True,
        linger: float | None = None,
        session_ttl: float | None = None,
        key: str | bytes | None = None,
        key_file: str | Path | None = None,
    ) -> None:
        super().__init__(on_error)
        self._given = {"linger": linger, "session_ttl": session_ttl, "key": key, "key_file": key_file}
        self._threaded = threaded
        self._asked = resolve(location)
        self._endpoint: ServerEndpoint | None = None
        self._ended = False
        self._ticking = threading.Lock()
        self._ticker = 0
        self._publishing = Publishing(self._has_more)
        self.forgetters: list[Callable[[Session], None]] = [self._publishing.forget]
        """Called, while ticking, with a session that has ended."""
        self.canceller: Callable[[Session, int], None] | None = None
        """Called, while ticking, with a request that nobody waits for any more."""
        self.answering = Answering(self._ask, self.post)
        self.answering.services[SUBSCRIBE] = self._publishing.subscribe
        self.controls[REQUEST] = self.answering.requested
        self.controls[UNSUBSCRIBE] = self._unsubscribed
        if not _unpickling.active:
            self._open()

    # -- life --------------------------------------------------------------------------------------------------

    def _open(self) -> ServerEndpoint:
        transport = find_transport(self._asked.scheme)
        self._settings, bare = settle(self._asked, transport.options, self._given)
        transport = signing(transport, self._settings.key)
        link = transport.bind(bare)
        self._location = link.location.replace(options=self._asked.options)
        capabilities = link.capabilities
        self._max_event = capabilities.max_frame - HEAD_BYTES
        self._window_bytes = min(WINDOW_BYTES, capabilities.window or WINDOW_BYTES)
        machine = Acceptor(
            self._outbox,
            max_frame=capabilities.max_frame,
            patience=PATIENCE if self._threaded else 0.0,
            session_ttl=self._settings.session_ttl,
            sees_peers=capabilities.sees_peers,
        )
        count_with(transport, machine)
        self._endpoint = ServerEndpoint(machine, link)
        self.keeping = Keeping(self._endpoint, threaded=self._threaded)
        _SERVERS.add(self)
        return self._endpoint

    @property
    def location(self) -> Location:
        """Where clients reach this server, with the port that the system chose."""
        if self._endpoint is None and not self._ended:
            self._open()
        return self._location

    def close(self, linger: float | None = None) -> None:
        """Confirm what was handled, tell the clients, and end within ``linger`` seconds. May be called twice.

        Events that arrived but were not dispatched are not confirmed: the clients keep them for the next server.
        """
        endpoint, self._endpoint = self._endpoint, None
        self._ended = True
        if endpoint is None:
            return
        _SERVERS.discard(self)
        self.keeping.close(self._settings.linger if linger is None else linger)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self._asked, self._threaded, self._given)

    def __repr__(self) -> str:
        state = "open" if self._endpoint else "closed" if self._ended else "not opened yet"
        return f"<Server {self._asked} {state}>"

    # -- dispatch ----------------------------------------------------------------------------------------------

    def tick(self, limit: int | None = None) -> int:
        """Dispatch what has arrived, at most ``limit`` events, and return how many. Never waits.

        Raises ReentrantTick when called by a listener of this server, LinkClosed after `close`.
        """
        endpoint = self._endpoint or self._reach()
        if not self._ticking.acquire(blocking=False):
            if self._ticker == threading.get_ident():
                raise ReentrantTick("tick() was called by a listener of the same server; return from it instead")
            return 0
        self._ticker = threading.get_ident()
        try:
            return self._drain(endpoint, limit)
        finally:
            self._ticking.release()

    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        """Return after ``timeout`` seconds, or earlier if there may be something to tick or ``waker`` is readable."""
        if self._endpoint is None:
            self._reach()
        self.keeping.wait(timeout, waker)

    def run(self, timeout: float | None = None) -> None:
        """Tick until `stop` or `close` is called, by a listener or another thread, or for ``timeout`` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        self._running = True
        while self._running and self._endpoint is not None:
            left = RUN_WAIT if deadline is None else min(RUN_WAIT, deadline - time.monotonic())
            if left <= 0:
                return
            try:
                if not self.tick() and self._running:
                    self.wait(left)
            except LinkClosed:
                if self._endpoint is not None:
                    raise

    async def serve(self) -> None:
        """Dispatch what arrives on the running event loop, until cancelled: listeners may be async then.

        Raises LinkClosed after `close`.
        """
        from remit.aio import serve  # for those who use asyncio

        await serve(self, self._endpoint or self._reach())

    @property
    def is_open(self) -> bool:
        """Whether it has a location open."""
        return self._endpoint is not None

    def stop(self) -> None:
        """Make `run` return. Safe from any thread."""
        self._running = False
        self.keeping.waker.wake()

    def emit(self, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Dispatch an event to this server's own listeners, here and now; nothing travels."""
        self._dispatch((Wire(name, args, kwargs),), None, False)

    def publish(self, name: str, /, *args: Any, keep: bool = False, **kwargs: Any) -> int:
        """Send an event to every client that subscribed to its name; return how many did. Never waits for one.

        ``keep`` makes it the last value of that name, for those who subscribe later and ask for it. Safe from any
        thread. Raises CodecError, LinkClosed.
        """
        if self._endpoint is None:
            self._reach()
        return self._publishing.publish(name, args, kwargs, keep=keep)

    def emit_to(self, peer: Sender | str, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Emit an event to one client, named by its `Sender` or the sender's id; acknowledged like any other.

        Raises EmitError if its session has ended, QueueFull, CodecError, FrameTooLarge.
        """
        identifier = peer if isinstance(peer, str) else peer.id
        endpoint = self._endpoint or self._reach()
        session = endpoint.machine.sessions.get(bytes.fromhex(identifier))
        if session is None:
            raise EmitError(f"cannot emit {name!r}: there is no session {identifier[:8]}")
        self._answer(session, name, args, kwargs)

    def stats(self) -> dict[str, int]:
        """Return counters: what was dispatched, refused, repeated, raised, and how many sessions there are."""
        counters = {
            "dispatched": self._dispatched,
            "listener_errors": self._errors,
            "unheard": self._unheard,
            "unanswered": self.answering.passed_over,
            "published": self._publishing.published,
            "subscriptions": len(self._publishing),
            "publications_dropped": self._publishing.dropped,
            "sessions": 0,
        }
        if self._endpoint is not None:
            machine = self._endpoint.machine
            counters["sessions"] = len(machine.sessions)
            counters["waiting"] = sum(len(wires) for _, wires, _, _ in machine.ready)
            counters["duplicates"] = sum(session.inbox.duplicates for session in machine.sessions.values())
            counters["rejected"] = machine.rejected.total()
            counters.update({f"rejected_{reason}": count for reason, count in machine.rejected.items()})
        return counters

    def _drain(self, endpoint: ServerEndpoint, limit: int | None) -> int:
        dispatched = 0
        bound: float | None = None
        while self._endpoint is endpoint:
            with endpoint.lock:
                drained = endpoint.pump(hold_back=True)
                self.keeping.pumped = now = time.monotonic()
                received = endpoint.events()
            self.tell_of_sessions(endpoint)
            while received is not None:
                dispatched += self._handle(endpoint, received, None if limit is None else limit - dispatched)
                if limit is not None and dispatched >= limit:
                    break
                received = endpoint.events()
            bound = now + TICK_BOUND if bound is None else bound
            if drained or (limit is not None and dispatched >= limit) or (limit is None and now > bound):
                break
        if dispatched and self._endpoint is endpoint:
            with endpoint.lock:
                endpoint.flush()
        return dispatched

    def tell_of_sessions(self, endpoint: ServerEndpoint) -> None:
        """Let those who keep something of a session know that it has ended, or that a request was cancelled."""
        machine = endpoint.machine
        machine.opened.clear()
        while machine.closed:
            session = machine.closed.popleft()
            for forget in self.forgetters:
                forget(session)
        while machine.cancelled:
            session, request = machine.cancelled.popleft()
            if self.canceller is not None:
                self.canceller(session, request)

    def _handle(self, endpoint: ServerEndpoint, received: Received, limit: int | None) -> int:
        """Dispatch one frame's events, or the first ``limit`` of them; confirm those whose listeners returned."""
        session, wires, count, redelivered = received
        if limit is not None and limit < len(wires):
            rest = wires[limit:]
            wires = wires[:limit]
            endpoint.machine.ready.appendleft((session, rest, len(rest) if count else 0, redelivered))
            count = len(wires) if count else 0
        before = self._dispatched
        try:
            self._dispatch(wires, self.sender(session), redelivered)
        except BaseException:
            # KeyboardInterrupt in a listener: that event counts as handled, those behind it wait for the next tick.
            done = min(self._dispatched - before + 1, len(wires))
            if done < len(wires):
                rest = wires[done:]
                endpoint.machine.ready.appendleft((session, rest, len(rest) if count else 0, redelivered))
            session.finish(done if count else 0)
            endpoint.machine.writable[session] = None
            raise
        session.finish(count)
        endpoint.machine.writable[session] = None
        return len(wires)

    # -- the way back ------------------------------------------------------------------------------------------

    def _outbox(self, codec: Codec, max_frame: int) -> Outbox:
        own = self._max_event + HEAD_BYTES
        return Outbox(
            codec,
            max_frame=min(own, max_frame),
            window_events=self._settings.window,
            window_bytes=self._window_bytes,
        )

    def sender(self, session: Session) -> Sender:
        """Return the client of a session as listeners see it."""
        if session.sender is None:
            server = weakref.ref(self)

            def answer(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                alive = server()
                if alive is None:
                    raise LinkClosed("the server is closed")
                alive._answer(session, name, args, kwargs)

            session.sender = Sender(
                session.id.hex(), answer, lambda: session.credentials, lambda: session.peer is not None, session
            )
        sender: Sender = session.sender
        return sender

    def _unsubscribed(self, wire: Wire, sender: Sender | None, _: bool) -> None:
        """Control: a client follows something no more."""
        self._publishing.unsubscribe(session_of(sender), *wire.args)

    def post(self, session: Session, name: str, args: tuple[Any, ...]) -> None:
        """Send what must not be refused for want of room: answers, of which there are no more than questions."""
        self._answer(session, name, args, {}, bounded=False)

    def _answer(
        self, session: Session, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, bounded: bool = True
    ) -> None:
        endpoint = self._endpoint or self._reach()
        if endpoint.machine.sessions.get(session.id) is not session:
            raise EmitError(f"cannot emit {name!r}: the session of {session.id.hex()[:8]} has ended")
        data = session.codec.encode(name, args, kwargs, {})
        if len(data) > session.outbox.max_frame - HEAD_BYTES:
            raise FrameTooLarge(f"event {name!r} has {len(data)} bytes, over {session.outbox.max_frame} a frame")
        if bounded and len(session.outbox.pending) >= self._settings.queue:
            raise QueueFull(f"{self._settings.queue} events wait for {session.id.hex()[:8]}; it does not keep up")
        session.outbox.pending.append(data)
        self._has_more(session)

    def _has_more(self, session: Session) -> None:
        """Something waits to be sent to a client: soon, by whoever ticks."""
        endpoint = self._endpoint or self._reach()
        endpoint.machine.writable[session] = None
        if self._ticker != threading.get_ident():  # Who ticks also waits, and flushes before that.
            self.keeping.waker.wake()

    # -- inside ------------------------------------------------------------------------------------------------

    def _reach(self) -> ServerEndpoint:
        if self._ended:
            raise LinkClosed(f"the server on {self._location} is closed")
        return self._open()  # it came here pickled, and opens where it is first used

    def _after_fork(self) -> None:
        """A forked child holds a copy that only refuses; its locks may be held by threads that are not here."""
        self._renew_lock()
        self._ticking = threading.Lock()
        self._publishing.lock = threading.Lock()
        if self._endpoint is not None:
            self.keeping.after_fork()


def ticked_here(location: Location) -> bool:
    """Whether the calling thread is the one that ticks a server on this location."""
    here = threading.get_ident()
    return any(server._ticker == here and server.location == location for server in list(_SERVERS))


class _Unpickling(threading.local):
    active = False


_unpickling = _Unpickling()


def _reopen(location: Location, threaded: bool, given: dict[str, Any]) -> Server:
    """Rebuild a pickled server; it opens its location when it is first used."""
    _unpickling.active = True
    try:
        return Server(location, threaded=threaded, **given)
    finally:
        _unpickling.active = False


def _after_fork_in_child() -> None:
    for server in list(_SERVERS):
        server._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
