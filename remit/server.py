"""Server: the end that listens: opens a location, and dispatches what arrives each time it is ticked."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from remit._io.pump import ServerPump
from remit._io.server_io import PATIENCE, ClientSender, ServerIO, TickLock
from remit._patterns.names import SUBSCRIBE, UNSUBSCRIBE
from remit._patterns.pubsub import Publisher
from remit._patterns.request_reply import RequestServer, session_of
from remit._protocol.server_sessions import ServerSessions
from remit._protocol.session import Received, Session
from remit.codec import EventMessage
from remit.config import resolve
from remit.errors import LinkClosed, ReentrantTick
from remit.event import Sender
from remit.listeners import ListenerRegistry, OnError, check_name
from remit.location import Location
from remit.options import resolve_options
from remit.plugins import find_transport
from remit.transport import Wakeable, register_after_fork
from remit.transports.authenticated import share_rejected_counter, with_authentication

if TYPE_CHECKING:
    pass

__all__ = ["Opened", "Server", "ticked_here"]


# Plain references, no WeakSet: every request looks here, and that one's own code would take longer than the look.
_servers: set[weakref.ref[Opened]] = set()


class Opened(ListenerRegistry):
    """Base of `Server`: all of it but what it does."""

    keeping: ServerIO

    def __init__(
        self,
        location: str | Location | None,
        given: dict[str, Any],
        *,
        on_error: OnError | None,
        threaded: bool,
    ) -> None:
        super().__init__(on_error)
        self._given = given
        self._threaded = threaded
        self._asked = resolve(location)
        self._endpoint: ServerPump | None = None
        self._location = self._asked
        self._ended = False
        self._turns = TickLock()
        # Weakly: a sender that somebody keeps does not keep the server.
        reach = weakref.WeakMethod(self._reach)
        self._way_back = ClientSender(lambda: _called(reach), self._turns)
        if not _unpickling.active:
            self._open()

    def _open(self) -> ServerPump:
        transport = find_transport(self._asked.scheme)
        self._settings, bare = resolve_options(self._asked, transport.options, self._given)
        transport = with_authentication(transport, self._settings.key)
        link = transport.bind(bare)
        self._location = link.location.replace(options=self._asked.options)
        self._way_back.limit(self._settings, link.capabilities)
        machine = ServerSessions(
            self._way_back.outbox,
            max_frame=link.capabilities.max_frame,
            liveness_timeout=PATIENCE if self._threaded else 0.0,
            session_ttl=self._settings.session_ttl,
            sees_peers=link.capabilities.sees_peers,
        )
        share_rejected_counter(transport, machine)
        self._endpoint = ServerPump(machine, link)
        self.keeping = self._way_back.keeping = ServerIO(self._endpoint, threaded=self._threaded)
        self._way_back.endpoint = self._endpoint
        _servers.add(weakref.ref(self, _servers.discard))
        return self._endpoint

    def _reach(self) -> ServerPump:
        if self._ended:
            raise LinkClosed(f"the server on {self._location} is closed")
        return self._open()  # it came here pickled, and opens where it is first used

    @property
    def location(self) -> Location:
        """Where clients reach this server, with the port that the system chose."""
        if self._endpoint is None and not self._ended:
            self._open()
        return self._location

    @property
    def is_open(self) -> bool:
        """Whether it has a location open."""
        return self._endpoint is not None

    def close(self, linger: float | None = None) -> None:
        """Confirm what was handled, tell the clients, and end within ``linger`` seconds. May be called twice.

        Events that arrived but were not dispatched are not confirmed: the clients keep them for the next server.
        """
        endpoint, self._endpoint = self._endpoint, None
        self._way_back.endpoint = None
        self._ended = True
        if endpoint is None:
            return
        _servers.discard(weakref.ref(self))
        self.keeping.close(self._settings.linger if linger is None else linger)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (type(self), self._asked, self._threaded, self._given)

    def __repr__(self) -> str:
        state = "open" if self._endpoint else "closed" if self._ended else "not opened yet"
        return f"<Server {self._asked} {state}>"

    def _after_fork(self) -> None:
        """A forked child holds a copy that only refuses; its locks may be held by threads that are not here."""
        self._renew_lock()
        self._turns.lock = threading.Lock()
        self._turns.thread = 0  # Whoever ticked did so in the parent, although a thread here has the same ident.
        if self._endpoint is not None:
            self.keeping.after_fork()


def ticked_here(location: Location) -> bool:
    """Whether the calling thread is the one that ticks a server on this location."""
    if not _servers:
        return False
    here = threading.get_ident()
    return any(server._turns.thread == here and server.location == location for server in _living())


def _called(reach: weakref.WeakMethod[Callable[[], ServerPump]]) -> ServerPump:
    method = reach()
    if method is None:
        raise LinkClosed("the server is closed")
    return method()


class _Unpickling(threading.local):
    active = False


_unpickling = _Unpickling()


def _reopen(kind: type[Opened], location: Location, threaded: bool, given: dict[str, Any]) -> Opened:
    """Rebuild a pickled server; it opens its location when it is first used."""
    _unpickling.active = True
    try:
        return kind(location, threaded=threaded, **given)
    finally:
        _unpickling.active = False


def _living() -> list[Opened]:
    return [server for each in tuple(_servers) if (server := each()) is not None]


def _after_fork_in_child() -> None:
    for server in _living():
        server._after_fork()


register_after_fork(_after_fork_in_child)


TICK_BOUND: Final = 0.25
"""Seconds after which a tick without ``limit`` returns although more keeps arriving."""
RUN_WAIT: Final = 1.0
"""Seconds that `Server.run` waits at a time."""
FOREVER: Final = float("inf")


class Server(Opened):
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
        given = {"linger": linger, "session_ttl": session_ttl, "key": key, "key_file": key_file}
        super().__init__(location, given, on_error=on_error, threaded=threaded)
        self._stopping = False
        self._publishing = Publisher(self._way_back.has_more)
        self.sender = self._way_back.sender
        """Return the client of a session as listeners see it."""
        self.answering = RequestServer(self._router, self._ask, self.post)
        self._router.register(UNSUBSCRIBE, self._unsubscribed)
        self._router.register_request(SUBSCRIBE, self._publishing.subscribe)
        self._router.on_session_closed(self._publishing.remove_session)

    # -- dispatch ----------------------------------------------------------------------------------------------

    def tick(self, limit: int | None = None) -> int:
        """Dispatch what has arrived, at most ``limit`` events, and return how many. Never waits.

        Raises ReentrantTick when called by a listener of this server, LinkClosed after `close`.
        """
        endpoint = self._endpoint or self._reach()
        turns = self._turns
        if not turns.lock.acquire(blocking=False):
            if turns.thread == threading.get_ident():
                raise ReentrantTick("tick() was called by a listener of the same server; return from it instead")
            return 0
        turns.thread = threading.get_ident()
        try:
            return self._drain(endpoint, limit)
        finally:
            turns.lock.release()

    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        """Return after ``timeout`` seconds, or earlier if there may be something to tick or ``waker`` is readable."""
        if self._endpoint is None:
            self._reach()
        self.keeping.wait(timeout, waker)

    def run(self, timeout: float | None = None) -> None:
        """Tick until `stop` or `close` is called, by a listener or another thread, or for ``timeout`` seconds."""
        deadline = FOREVER if timeout is None else time.monotonic() + timeout
        if self._endpoint is None and not self._ended:
            self._reach()
        try:
            while not self._stopping and self._endpoint is not None and (left := deadline - time.monotonic()) > 0:
                try:
                    if not self.tick() and not self._stopping:
                        self.wait(min(left, RUN_WAIT))
                except LinkClosed:
                    if self._endpoint is not None:
                        raise
        finally:
            self._stopping = False

    async def serve(self) -> None:
        """Dispatch what arrives on the running event loop, until cancelled: listeners may be async then.

        Raises LinkClosed after `close`.
        """
        from remit._io.async_server import serve  # for those who use asyncio

        await serve(self, self._endpoint or self._reach())

    def stop(self) -> None:
        """Make `run` return, or the next one if none has begun yet. Safe from any thread."""
        self._stopping = True
        self.wake()

    def wake(self) -> None:
        """Make `wait` return. Safe from any thread."""
        if self._endpoint is not None:
            self.keeping.waker.wake()

    def emit(self, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Dispatch an event to this server's own listeners, here and now; nothing travels."""
        check_name(name)
        self._dispatch((EventMessage(name, args, kwargs),), None, False)

    def publish(self, name: str, /, *args: Any, keep: bool = False, **kwargs: Any) -> int:
        """Send an event to every client that subscribed to its name; return how many did. Never waits for one.

        ``keep`` makes it the last value of that name, for those who subscribe later and ask for it. Safe from any
        thread. Raises CodecError, FrameTooLarge, LinkClosed.
        """
        if self._endpoint is None:
            self._reach()
        return self._publishing.publish(name, args, kwargs, keep=keep, largest=self._way_back.largest)

    def emit_to(self, peer: Sender | str, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Emit an event to one client, named by its `Sender` or the sender's id; acknowledged like any other.

        Raises EmitError if its session has ended, QueueFull, CodecError, FrameTooLarge.
        """
        self._way_back.emit_to(peer, name, args, kwargs)

    @property
    def caught_up(self) -> float:
        """The moment, on the monotonic clock, until which everything that came has been received. Raises LinkClosed."""
        return (self._endpoint or self._reach()).caught_up

    def stats(self) -> dict[str, int]:
        """Return counters: what was dispatched, refused, repeated, raised, and how many sessions there are."""
        counters = {
            "dispatched": self._dispatched,
            "listener_errors": self._errors,
            "unheard": self._unheard,
            "unanswered": self.answering.skipped,
            "published": self._publishing.published,
            "subscriptions": len(self._publishing),
            "publications_dropped": self._publishing.dropped,
            "sessions": 0,
        }
        if self._endpoint is not None:
            machine = self._endpoint.machine
            # Copies, made in one go: another thread may pump meanwhile.
            sessions, rejected = list(machine.sessions.values()), dict(machine.rejected)
            counters["sessions"] = len(sessions)
            counters["waiting"] = sum(len(wires) for _, wires, _, _ in list(machine.ready))
            counters["duplicates"] = sum(session.inbox.duplicates for session in sessions)
            counters["rejected"] = sum(rejected.values())
            counters.update({f"rejected_{reason}": count for reason, count in rejected.items()})
        return counters

    def _drain(self, endpoint: ServerPump, limit: int | None) -> int:
        dispatched = 0
        bound: float | None = None
        while self._endpoint is endpoint:
            with endpoint.lock:
                drained = endpoint.pump(hold_back=True)
                self.keeping.pumped = now = time.monotonic()
                received = endpoint.events()
            while received is not None:
                if endpoint.machine.closed:
                    self.tell_of_sessions(endpoint, received[0])
                dispatched += self._handle(endpoint, received, None if limit is None else limit - dispatched)
                if limit is not None and dispatched >= limit:
                    break
                received = endpoint.events()
            self.tell_of_sessions(endpoint)
            bound = now + TICK_BOUND if bound is None else bound
            if drained or (limit is not None and dispatched >= limit) or (limit is None and now > bound):
                break
        if endpoint.machine.writable and self._endpoint is endpoint:
            with endpoint.lock:
                endpoint.flush()
        return dispatched

    def tell_of_sessions(self, endpoint: ServerPump, heard: Session | None = None) -> None:
        """Let those who keep something of a session know that it has ended, or that a request was cancelled.

        An end comes after all that the session brought, and not while it is ``heard``: what is handled after its end
        would never be forgotten.
        """
        machine = endpoint.machine
        machine.opened.clear()
        if not machine.closed and not machine.cancelled_requests:
            return
        closed = list(machine.closed)  # Copies, as in `stats`. This one first: what it brought came before its end.
        waiting = {heard, *(received[0] for received in list(machine.ready))} if closed else set()
        for session in [each for each in closed if each not in waiting]:
            machine.closed.remove(session)
            self._router.session_closed(session)
        while machine.cancelled_requests:
            self._router.request_cancelled(*machine.cancelled_requests.popleft())

    def _handle(self, endpoint: ServerPump, received: Received, limit: int | None) -> int:
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
            session.mark_handled(done if count else 0)
            endpoint.machine.writable[session] = None
            raise
        session.mark_handled(count)
        endpoint.machine.writable[session] = None
        return len(wires)

    # -- the way back ------------------------------------------------------------------------------------------

    def _unsubscribed(self, wire: EventMessage, sender: Sender | None, _: bool) -> None:
        """Control: a client follows something no more."""
        self._publishing.unsubscribe(session_of(sender), *wire.args)

    def post(self, session: Session, name: str, args: tuple[Any, ...]) -> None:
        """Send what must not be refused for want of room: answers, of which there are no more than questions."""
        self._way_back.emit(session, name, args, {}, bounded=False)

    def post_now(self, session: Session, name: str, args: tuple[Any, ...]) -> None:
        """The same, by this thread, which waits for the answer: nobody else is woken to send it."""
        self._way_back.emit(session, name, args, {}, bounded=False, now=True)

    def _after_fork(self) -> None:
        super()._after_fork()
        self._publishing.lock = threading.Lock()
