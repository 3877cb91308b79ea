"""Client: the end that emits: takes events from any thread, and has them delivered without being ticked."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from remit._io.drivers import Runtime
from remit._io.exit_flush import forget, keep, remember
from remit._patterns.names import PROGRESS, PUBLISHED, SERVER_RESTARTED, SUBSCRIBE, UNSUBSCRIBE, UNSUBSCRIBED
from remit._patterns.pubsub import OnGap, SubscriberState, Subscription
from remit._patterns.request_reply import OnProgress, ResultSink
from remit.codec import Codec, EventMessage, find_codec
from remit.config import resolve
from remit.errors import LinkClosed, Undelivered, WouldDeadlock
from remit.event import Event, check_event
from remit.listeners import ListenerRegistry, OnError
from remit.location import Location
from remit.options import resolve_options
from remit.plugins import find_transport
from remit.server import ticked_here
from remit.transports.authenticated import with_authentication

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["SETTLE", "Client", "Connection"]


SETTLE: Final = 0.25
"""Seconds that a wait for a server ticked by this very thread may take: acknowledgements may be under way."""


class Connection(ListenerRegistry):
    """Base of `Client`: all of it but what it does."""

    def __init__(
        self,
        location: str | Location | None,
        given: Mapping[str, Any],
        *,
        codec: str | Codec | None,
        threaded: bool,
        on_error: OnError | None,
    ) -> None:
        super().__init__(on_error)
        self._given = given
        self._codec = codec
        self._threaded = threaded
        self._location = resolve(location)
        transport = find_transport(self._location.scheme)
        named = codec if isinstance(codec, str) else None
        self._settings, self._bare = resolve_options(self._location, transport.options, {**given, "codec": named})
        self._spoken()
        self._transport = with_authentication(transport, self._settings.key)
        self._runtime: Runtime | None = None
        self._closed = False

    @property
    def location(self) -> Location:
        """Where the server is reached."""
        return self._location

    @property
    def linger(self) -> float:
        """Seconds that `close` waits unless told otherwise."""
        return self._settings.linger

    @property
    def connected(self) -> bool:
        """Whether a server has welcomed this client on the present connection."""
        return self._runtime is not None and self._runtime.connected

    def stats(self) -> dict[str, int]:
        """Return counters: what waits, what is under way, what was dropped, refused or repeated."""
        counters = {"dispatched": self._dispatched, "listener_errors": self._errors, "unheard": self._unheard}
        return counters | (self._runtime.stats() if self._runtime else {})

    def close(self, linger: float | None = None) -> None:
        """Wait up to ``linger`` seconds until all is confirmed, then end. May be called twice.

        Raises Undelivered, which names what was not confirmed.
        """
        runtime, self._runtime = self._runtime, None
        self._closed = True
        forget(self)
        if runtime is None:
            return
        bound = self._settings.linger if linger is None else linger
        here = ticked_here(self._location)
        drained = runtime.drain(min(SETTLE, bound) if here else bound, quiet=True)
        left = runtime.close(bound)
        if left is None:
            return
        if here and not drained:
            raise left from WouldDeadlock("this thread ticks the server itself: tick it before closing the client")
        raise left

    def __enter__(self) -> Self:
        if self._runtime is None:
            self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Undelivered as lost:
            if error is None:
                raise
            error.add_note(f"and while leaving the client: {lost}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self._location, self._codec, self._threaded, self._given)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "connected" if self.connected else "not connected"
        return f"<Client {self._location} {state}>"

    def _open(self) -> Runtime:
        if self._closed:
            raise LinkClosed(f"the client to {self._location} is closed")
        hear = weakref.WeakMethod(self._dispatch)
        runtime = Runtime(
            self._transport,
            self._bare,
            self._settings,
            codec=None if isinstance(self._codec, str) else self._codec,
            threaded=self._threaded,
            router=self._router,
            dispatch=hear,
        )
        self._runtime = runtime
        remember(self)
        if self._threaded:
            keep(self)
        return runtime

    @property
    def crowded(self) -> bool:
        """Whether `emit` may have to wait for room."""
        gate = (self._runtime or self._open()).gate
        return len(gate.pending) >= gate.capacity

    def never_wait_here(self) -> None:
        """Let nothing wait for room in the calling thread, an event loop's: what would have to raises `NoRoom`."""
        (self._runtime or self._open()).gate.loop = threading.get_ident()

    def answers_within(self, seconds: float) -> None:
        """Let an acknowledgement wait so long for an event to leave with. For whoever ticks a client without a thread.

        It saves the server two ticks where what is heard is soon answered; one that is late leaves in the next tick.
        """
        (self._runtime or self._open()).answers_within(seconds)

    def beat(self, seconds: float) -> None:
        """From now on ask after this many seconds of silence whether the server is there."""
        (self._runtime or self._open()).beat(seconds)

    @property
    def silence(self) -> float:
        """Seconds since the server was last heard; infinity before the first time."""
        return float("inf") if self._runtime is None else self._runtime.silence

    def _spoken(self) -> Codec:
        return find_codec(self._settings.codec) if self._codec is None else find_codec(self._codec)

    def _after_fork(self) -> None:
        """In a forked child: begin anew at the next use; what the parent has under way is the parent's."""
        self._renew_lock()
        runtime, self._runtime = self._runtime, None
        if runtime is not None:
            runtime.abandon()


def _rebuild(
    kind: type[Connection], location: Location, codec: str | Codec | None, threaded: bool, given: dict[str, Any]
) -> Connection:
    return kind(location, codec=codec, threaded=threaded, **given)


FOREVER: Final = float("inf")
_NOTHING: Mapping[str, Any] = {}


class Client(Connection):
    """The end that emits. Connects at its first use, and again whenever the connection is lost.

    ``location`` is a URL, a `Location`, a name from the configuration, or None for the configured default. A daemon
    thread, started at first use, sends, listens and resends; with ``threaded=False`` the caller does that by
    `tick`. Options not given are taken from the location's query. With a ``key``, or a ``key_file`` that holds it, only
    a server with the same one is spoken to. May be pickled, and used after a fork: what
    travels is the location and the options. Raises LocationError, PluginError.
    """

    def __init__(
        self,
        location: str | Location | None = None,
        *,
        codec: str | Codec | None = None,
        delivery: str | None = None,
        when_full: str | None = None,
        queue: int | None = None,
        queue_bytes: int | None = None,
        window: int | None = None,
        emit_timeout: float | None = None,
        linger: float | None = None,
        request_timeout: float | None = None,
        heartbeat: float | None = None,
        key: str | bytes | None = None,
        key_file: str | Path | None = None,
        threaded: bool = True,
        on_error: OnError | None = None,
    ) -> None:
        given = {
            "delivery": delivery,
            "when_full": when_full,
            "queue": queue,
            "queue_bytes": queue_bytes,
            "window": window,
            "emit_timeout": emit_timeout,
            "linger": linger,
            "request_timeout": request_timeout,
            "heartbeat": heartbeat,
            "key": key,
            "key_file": key_file,
        }
        super().__init__(location, given, codec=codec, threaded=threaded, on_error=on_error)
        self._following = SubscriberState()
        register = self._router.register
        register(PROGRESS, lambda wire, *_: wire.args[0](*wire.args[1:]))
        register(PUBLISHED, lambda wire, *_: self._following.on_publication(self._spoken(), wire))
        register(SERVER_RESTARTED, lambda wire, *_: self._renewed(wire))
        register(UNSUBSCRIBED, lambda wire, *_: self._following.on_unsubscribed(wire))

    # -- emitting ----------------------------------------------------------------------------------------------

    def emit(self, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Emit an event: encoded now, delivered soon. Safe from any thread.

        Raises CodecError, FrameTooLarge, LinkClosed, SessionRefused, and as ``when_full`` says QueueFull or
        EmitTimeout.
        """
        runtime = self._runtime or self._open()
        gate = runtime.gate
        data = gate.encode(name, args, kwargs, _NOTHING)
        crowded = len(data) > gate.small or len(gate.pending) >= gate.capacity
        if crowded and not gate.admit(name, len(data)):
            return
        gate.pending.append(data)
        if gate.idle:
            runtime.wake()

    def emit_event(self, event: Event) -> None:
        """Emit an event that carries headers. Like `emit` otherwise."""
        check_event(event)
        runtime = self._runtime or self._open()
        data = runtime.gate.encode(event.name, event.args, event.kwargs, event.headers)
        if runtime.gate.admit(event.name, len(data)):
            runtime.gate.pending.append(data)
            runtime.wake()

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until every event so far is confirmed as handled; False after ``timeout`` (or linger) seconds.

        False also if one turned out to be over the server's own ``max_frame``: `close` names it.

        In the thread that ticks the server a longer wait than a quarter of a second would be in vain: it raises
        WouldDeadlock. Raises also SessionRefused.
        """
        runtime = self._runtime
        if runtime is None:
            return True
        bound = self._settings.linger if timeout is None else timeout
        if bound <= SETTLE or not ticked_here(self._location):
            return runtime.drain(bound)
        if runtime.drain(SETTLE):
            return True
        raise WouldDeadlock(
            f"this thread ticks the server on {self._location} itself: tick it until the events are handled, "
            "or wait in another thread"
        )

    # -- asking ------------------------------------------------------------------------------------------------

    def request(
        self,
        name: str,
        /,
        *args: Any,
        timeout: float | None = None,
        idempotent: bool = False,
        on_progress: OnProgress | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return what the first listener of this name returns there; wait for it up to ``timeout`` seconds.

        ``idempotent`` says that it may run twice: then it is asked again after the connection was lost.
        ``on_progress(done, total)`` is called as a listener that runs for long tells how far it is. Raises
        RequestFailed with the other side's traceback, NoListener, RequestTimeout, PeerLost at once when the
        connection is lost, WouldDeadlock in the thread that ticks the server, and what `emit` raises.
        """
        if ticked_here(self._location):
            raise WouldDeadlock(f"this thread ticks the server on {self._location} itself: ask it from another one")
        runtime = self._runtime or self._open()
        bound = self._settings.request_timeout if timeout is None else timeout

        def pose(waiter: ResultSink) -> None:
            runtime.asking.send(
                waiter, name, args, kwargs, timeout=bound, idempotent=idempotent, on_progress=on_progress
            )

        return runtime.request(pose)

    def submit(
        self,
        name: str,
        /,
        *args: Any,
        timeout: float | None = None,
        idempotent: bool = False,
        on_progress: OnProgress | None = None,
        **kwargs: Any,
    ) -> Future[Any]:
        """Like `request` without the wait: return a future. To cancel it tells the server that nobody waits.

        Its callbacks run on the thread that serves the connection, so they have to be short.
        """
        runtime = self._runtime or self._open()
        return runtime.asking.submit(
            name,
            args,
            kwargs,
            timeout=self._settings.request_timeout if timeout is None else timeout,
            idempotent=idempotent,
            on_progress=on_progress,
        )

    # -- listening ---------------------------------------------------------------------------------------------

    def add_listener(
        self, name: str, listener: Callable[..., Any], *, pass_event: bool = False, once: bool = False
    ) -> None:
        """Call ``listener(*args, **kwargs)`` for each such event that the server emits to this client.

        Listeners run in a thread of their own, or in `tick` with ``threaded=False``. The rest is as on a server.
        """
        super().add_listener(name, listener, pass_event=pass_event, once=once)
        if self._threaded:
            self.start()

    def tick(self, timeout: float = 0.0) -> int:
        """With ``threaded=False``: send, receive, dispatch; wait up to ``timeout`` seconds for something to come.

        Return how many events were dispatched. With a thread at work there is nothing to do: 0.
        """
        return (self._runtime or self._open()).tick(timeout)

    def start(self) -> None:
        """From now on a thread does what `tick` did, and dispatches to listeners."""
        self._threaded = True
        (self._runtime or self._open()).start()
        keep(self)

    def subscribe(
        self,
        pattern: str,
        listener: Callable[..., Any],
        *,
        last: bool = False,
        queue: int = 1024,
        when_full: str = "drop_oldest",
        max_lag: float | None = None,
        on_gap: OnGap | None = None,
        pass_event: bool = False,
        timeout: float | None = None,
    ) -> Subscription:
        """Call ``listener(*args, **kwargs)`` for what the server publishes under this name or pattern from now on.

        Returns when the server has confirmed it: what is published later arrives. With ``last`` it begins with the
        values that the server kept. The server holds ``queue`` publications for a client that does not keep up; beyond
        that, or when one is older than ``max_lag`` seconds, it does what ``when_full`` says: ``drop_oldest``,
        ``drop_newest`` or ``unsubscribe``. ``on_gap`` is called with how many are missing, or with None after the
        server began anew. Raises what `request` raises, and TypeError or
        ValueError for what cannot be subscribed to.
        """
        subscription = Subscription(pattern, listener, (queue, when_full, max_lag, last), on_gap, pass_event=pass_event)
        subscription._set_unsubscribe(self._unsubscribe)
        self._following.add(subscription)
        if self._threaded:
            self.start()
        try:
            self.request(SUBSCRIBE, *subscription._request_args, timeout=timeout, idempotent=True)
        except BaseException:
            self._following.remove(subscription)
            raise
        return subscription

    def _unsubscribe(self, subscription: Subscription) -> None:
        if self._following.remove(subscription) and self._runtime is not None:
            self.emit(UNSUBSCRIBE, subscription.id)

    def _renewed(self, wire: EventMessage) -> None:
        """The server began anew, and knows nothing of what this client follows."""
        for subscription in self._following:
            try:
                # However long it is not ticked: nobody would ask again.
                self.submit(SUBSCRIBE, *subscription._request_args, timeout=FOREVER, idempotent=True)
                subscription._on_server_restart()
            except Exception as error:  # noqa: BLE001 - one subscription must not end the others
                self._failed(wire.event(), error)
