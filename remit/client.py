"""The `Client`, which emits events, sends requests and subscribes to publications."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, Self

from remit._io import exit_flush
from remit._io.client_io import ClientIO
from remit._io.server_io import ticked_here
from remit._patterns.names import PROGRESS, PUBLISHED, REJECTED, SERVER_RESTARTED, SUBSCRIBE, UNSUBSCRIBE, UNSUBSCRIBED
from remit._patterns.pubsub import OnGap, SubscriberState, Subscription
from remit._patterns.rejections import Rejections
from remit._patterns.request_reply import OnProgress
from remit.codec import ENCODE_ERRORS, SCALARS, Codec, EventMessage, find_codec
from remit.config import resolve
from remit.errors import LinkClosed, RemitError, SessionRefused, Undelivered, WouldDeadlock
from remit.event import NO_HEADERS, Event, parts_of
from remit.listeners import ListenerRegistry, OnError
from remit.location import Location
from remit.options import QUEUE_BYTES, resolve_options
from remit.plugins import find_transport
from remit.transport import register_after_fork
from remit.transports.authenticated import with_authentication

__all__ = ["Client"]

SAME_THREAD_WAIT_S: Final = 0.25
"""Longest flush in the thread that ticks the server: acknowledgements of earlier ticks may still arrive."""
FOREVER: Final = float("inf")


class Client(ListenerRegistry):
    """Emits events to one server. Connects at its first use, and again whenever the connection is lost.

    ``location`` is a URL, a `Location`, a name from the configuration, or None for the configured default. A daemon
    thread, started at first use, sends, receives and resends; with ``threaded=False`` the caller does that by `tick`.
    Options that are not given are taken from the query of the location. With a ``key`` or ``key_file`` the client
    talks only to a server with the same key. A client can be pickled and used after a fork: location and options
    travel, and the copy opens its own connection. Raises LocationError, PluginError.
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
        super().__init__(on_error)
        self._given: dict[str, Any] = {"codec": codec, "delivery": delivery, "when_full": when_full, "queue": queue}
        self._given |= {"queue_bytes": queue_bytes, "window": window, "emit_timeout": emit_timeout, "linger": linger}
        self._given |= {"request_timeout": request_timeout, "heartbeat": heartbeat, "key": key, "key_file": key_file}
        self._threaded = threaded
        self._location = resolve(location)
        transport = find_transport(self._location.scheme)
        options = {**self._given, "codec": codec if isinstance(codec, str) else None}
        self._options, self._address = resolve_options(self._location, transport.options, options)
        self._codec = find_codec(self._options.codec if codec is None else codec)
        self._transport = with_authentication(transport, self._options.key)
        self._io: ClientIO | None = None
        self._open_lock = threading.RLock()
        self._closed = False
        register_after_fork(self._after_fork)
        self._subscriptions = SubscriberState()
        self._rejections = Rejections(self._router, self._report_error, self._reject)
        handle = self._router.register
        handle(PROGRESS, lambda message, *_: message.args[0](*message.args[1:]))
        published = self._subscriptions.on_publication
        handle(PUBLISHED, lambda message, *_: published(self._codec, message, self._begin), repeatable=True)
        handle(SERVER_RESTARTED, lambda message, *_: self._subscribe_again(message), repeatable=True)
        handle(UNSUBSCRIBED, lambda message, *_: self._subscriptions.on_unsubscribed(message), repeatable=True)

    def _reject(self, _: object, name: str, __: object, reason: str) -> None:
        """Send an error for an event that could not be decoded."""
        with contextlib.suppress(RemitError):  # The client may be closed, or its queue full.
            self.emit(REJECTED, name, reason)

    def _open(self) -> ClientIO:
        # Several threads may emit their first events at the same time: the events of a second connection would be lost.
        # A signal handler or finalizer in the opening thread may emit as well: its connection precedes and is used.
        lock, io = self._open_lock, None
        nested = lock._is_owned()  # type: ignore[attr-defined]
        try:
            with lock:
                if self._io is None:
                    if self._closed:
                        raise LinkClosed(f"the client to {self._location} is closed")
                    if sys.is_finalizing() and not self._transport.capabilities.attests_peers:
                        # The library of a backend has ended its threads: a connection could never be closed.
                        raise LinkClosed(f"the interpreter ends: use the client to {self._location} in an exit hook")
                    io = ClientIO(
                        functools.partial(self._transport.connect, self._address),
                        self._options,
                        self._transport,
                        codec=self._codec,
                        threaded=self._threaded and not exit_flush.is_exiting(),
                        router=self._router,
                        dispatch=weakref.WeakMethod(self._dispatch_frame),
                    )
                    exit_flush.register(self, io)
                    # Without a call in between, so that no signal handler runs there.
                    self._io = opened = self._io or io
                else:
                    opened = self._io
            if io is not None and io is not opened:
                io.close(0.0)
        except BaseException:
            while not nested and lock._is_owned():  # type: ignore[attr-defined]
                lock.release()
            if io is not None and io is not self._io:
                io.close(0.0)
            raise
        return opened

    @property
    def location(self) -> Location:
        """Location of the server."""
        return self._location

    @property
    def connected(self) -> bool:
        """Whether a server has accepted this client on the present connection."""
        return self._io is not None and self._io.connected

    @property
    def silence(self) -> float:
        """Seconds since the last frame from the server; infinity before the first one."""
        return FOREVER if self._io is None else self._io.silence

    def _set_heartbeat(self, seconds: float) -> None:
        """Probe the server after this many seconds of silence."""
        io = self._io or self._open()
        # Without the link lock, which a waiting thread holds. That thread is woken to compute its timeout again.
        io.machine.set_heartbeat(seconds)
        io.link_lock.interrupt()

    def stats(self) -> dict[str, Any]:
        """Return counters of dispatched events, the queue, the window and the connection.

        ``why`` is the reason why the client is not connected; empty if it is.
        """
        counters = {"dispatched": self._dispatched, "listener_errors": self._errors, "unheard": self._unheard}
        return {**counters, "undecodable_there": self._rejections.count, **(self._io.stats() if self._io else {})}

    def emit(self, name: str | Event, /, *args: Any, **kwargs: Any) -> None:
        """Emit an event: it is encoded now and sent soon. Safe from any thread.

        Like every operation with a name and arguments, it takes an `Event` instead, which may have headers. Raises
        CodecError, FrameTooLarge, LinkClosed, SessionRefused, and QueueFull or EmitTimeout as ``when_full`` demands.
        """
        queue = (self._io or self._open()).send_queue
        data = None
        # The fast path of Codec.encode, written out: arguments of these types need no check.
        if type(name) is str and not kwargs:
            for arg in args:
                if type(arg) not in SCALARS:
                    break
            else:
                with_scalars = queue.encode_scalars
                try:
                    data = with_scalars((name, args))
                except ENCODE_ERRORS:
                    data = None  # encode() converts the value, or explains what is wrong with it.
        if data is None:
            event = parts_of(name, args, kwargs)
            name, data = event[0], queue.encode(*event)
        # The fast path of SendQueue.put, written out: a small event costs one append to the deque that the outbox sends
        # from, without a lock. deque.append is atomic; the bound may be exceeded by one event for each thread.
        full = len(data) > queue.small or len(queue.pending) >= queue.capacity
        if full and not queue.reserve(name, len(data)):  # type: ignore[arg-type]
            return
        # A local, which CPython 3.11 calls faster than an attribute; in one line, because close() replaces `append`.
        (_ := queue.append)(data)
        if queue.idle:
            queue.wake()

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until the server has handled every event emitted so far. Return False after ``timeout`` seconds.

        The default timeout is ``linger``. Also returns False if an event exceeds the ``max_frame`` of the server;
        `close` then names it. Raises SessionRefused, and WouldDeadlock in the thread that ticks the server.
        """
        io = self._io
        if io is None:
            return True
        bound = self._options.linger if timeout is None else timeout
        if bound <= SAME_THREAD_WAIT_S or not ticked_here(self._location):
            return io.drain(bound)
        if io.drain(SAME_THREAD_WAIT_S):
            return True
        raise WouldDeadlock(
            f"this thread ticks the server on {self._location} itself: tick it until the events are handled, "
            "or wait in another thread"
        )

    def request(
        self,
        name: str | Event,
        /,
        *args: Any,
        timeout: float | None = None,
        idempotent: bool = False,
        on_progress: OnProgress | None = None,
        **kwargs: Any,
    ) -> Any:
        """Send a request and return the value that the server's first listener of this name returns.

        An `Event` instead of the name has arguments of its own, which may be called like the options here. An
        ``idempotent`` request may run twice: it is repeated after a lost connection. ``on_progress(done, total)`` is
        called with the progress that the listener reports. Raises RequestFailed with the traceback of the listener,
        NoListener, RequestTimeout after ``timeout`` seconds, PeerLost when the connection is lost, WouldDeadlock in the
        thread that ticks the server, and what `emit` raises.
        """
        if ticked_here(self._location):
            raise WouldDeadlock(
                f"this thread ticks the server on {self._location} itself: send the request in another thread"
            )
        if self._open_lock._is_owned():  # type: ignore[attr-defined]
            raise WouldDeadlock("this call interrupts the connecting of this client in the same thread: use submit()")
        bound = self._options.request_timeout if timeout is None else timeout
        return (self._io or self._open()).request(
            *parts_of(name, args, kwargs), timeout=bound, idempotent=idempotent, on_progress=on_progress
        )

    def submit(
        self,
        name: str | Event,
        /,
        *args: Any,
        timeout: float | None = None,
        idempotent: bool = False,
        on_progress: OnProgress | None = None,
        **kwargs: Any,
    ) -> Future[Any]:
        """Send a request and return a future of its result. Cancelling the future cancels the request on the server.

        Callbacks of the future run on the I/O thread and must be short. Arguments and errors are those of `request`.
        """
        bound = self._options.request_timeout if timeout is None else timeout
        return (self._io or self._open()).requests.submit(
            *parts_of(name, args, kwargs), timeout=bound, idempotent=idempotent, on_progress=on_progress
        )

    def add_listener(
        self, name: str, listener: Callable[..., Any], *, pass_event: bool = False, once: bool = False
    ) -> None:
        """Call ``listener(*args, **kwargs)`` for each event of this name that the server emits to this client.

        Listeners run in their own thread, or in `tick` with ``threaded=False``. Otherwise as `Server.add_listener`.
        """
        super().add_listener(name, listener, pass_event=pass_event, once=once)
        if self._threaded:
            self.start()

    def tick(self, timeout: float = 0.0) -> int:
        """Send, receive and dispatch, with ``threaded=False``. Wait up to ``timeout`` seconds for an event.

        Return the number of dispatched events. Does nothing and returns 0 while the I/O thread runs.
        """
        return (self._io or self._open()).tick(timeout)

    def start(self) -> None:
        """Start the threads that send, receive and dispatch. `tick` is not needed from now on."""
        self._threaded = True
        (self._io or self._open()).start()
        exit_flush.keep_alive(self)

    def subscribe(
        self,
        pattern: str,
        listener: Callable[..., Any],
        *,
        last: bool = False,
        queue: int = 1024,
        queue_bytes: int = QUEUE_BYTES,
        when_full: str = "drop_oldest",
        max_lag: float | None = None,
        on_gap: OnGap | None = None,
        pass_event: bool = False,
        timeout: float | None = None,
    ) -> Subscription:
        """Call ``listener(*args, **kwargs)`` for each publication with this name, or a name that matches a pattern.

        Returns when the server has confirmed the subscription: later publications arrive. With ``last`` the values
        that the server kept arrive first. The server queues up to ``queue`` publications and ``queue_bytes`` for a slow
        client. If the queue is full, or a publication is older than ``max_lag`` seconds, ``when_full`` applies:
        ``drop_oldest``, ``drop_newest`` or ``unsubscribe``. ``on_gap`` is called with the number of missed
        publications, or with None after a restart of the server. Raises what `request` raises, and TypeError or
        ValueError for invalid arguments.
        """
        subscription = self._new_subscription(
            pattern, listener, (queue, when_full, max_lag, last, queue_bytes), on_gap, pass_event=pass_event
        )
        try:
            self.request(SUBSCRIBE, *subscription._request_args, timeout=timeout, idempotent=True)
        except BaseException:
            subscription.close()
            raise
        return subscription

    def _new_subscription(
        self,
        pattern: str,
        listener: Callable[..., Any],
        options: tuple[int, str, float | None, bool, int],
        on_gap: OnGap | None,
        *,
        pass_event: bool,
    ) -> Subscription:
        """Return a subscription that receives publications as soon as the server knows it."""
        report = functools.partial(self._report_error, Event(pattern))
        subscription = Subscription(
            pattern, listener, options, on_gap, self._adapt, self._unsubscribe, report, pass_event=pass_event
        )
        try:
            # Before the request: the first publication may arrive together with the reply.
            self._subscriptions.active[subscription.id] = subscription
            if self._threaded:
                self.start()
        except BaseException:
            self._subscriptions.active.pop(subscription.id, None)
            raise
        return subscription

    def _unsubscribe(self, subscription: Subscription) -> None:
        io = self._io
        if subscription.id in self._subscriptions.active and io is not None:
            # Beyond the bound of the queue: closing a subscription must not wait, for example on an event loop. If the
            # session was refused, or the client is closed, the server has no subscriptions of it.
            with contextlib.suppress(SessionRefused, LinkClosed):
                io.send_queue.append(io.send_queue.encode(UNSUBSCRIBE, (subscription.id,), {}, NO_HEADERS))
                if io.send_queue.idle:
                    io.send_queue.wake()
        # Removed last: after an interrupt, another close() repeats the above.
        self._subscriptions.active.pop(subscription.id, None)

    def _subscribe_again(self, message: EventMessage) -> None:
        """Repeat all subscriptions: a restarted server does not know them."""
        for subscription in tuple(self._subscriptions.active.values()):
            try:
                # Without a deadline: after a timeout nothing would repeat the subscription.
                self.submit(SUBSCRIBE, *subscription._request_args, timeout=FOREVER, idempotent=True)
                subscription._on_server_restart()
            except RemitError as error:
                self._report_error(message.event(), error)

    def close(self, linger: float | None = None) -> None:
        """Wait up to ``linger`` seconds until all events are confirmed, then close the connection. Idempotent.

        Raises Undelivered, which names the events that were not confirmed.
        """
        # First, so that no other thread opens a connection that nothing would close. `_open` reads it under its lock,
        # and a thread that is opening now is waited for.
        self._closed = True
        lock = self._open_lock
        nested = lock._is_owned()  # type: ignore[attr-defined]
        try:
            lock.acquire()
            io = self._io
            lock.release()
        except BaseException:
            while not nested and lock._is_owned():  # type: ignore[attr-defined]
                lock.release()
            raise
        if io is None:
            exit_flush.unregister(self)
            return
        bound = self._options.linger if linger is None else linger
        here = ticked_here(self._location)
        io.send_queue.close()
        drained = io.drain(min(SAME_THREAD_WAIT_S, bound) if here else bound, quiet=True)
        undelivered = io.close(bound)
        # The connection is dropped last. After an interrupt before, another close(), or the exit of the process,
        # reports the events.
        try:
            if undelivered is not None:
                if here and not drained:
                    why = "this thread ticks the server itself: tick it before closing the client"
                    undelivered.__cause__ = WouldDeadlock(why)
                raise undelivered
        except Undelivered:
            exit_flush.unregister(self)
            self._io = None
            raise
        exit_flush.unregister(self)
        self._io = None

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except Undelivered as lost:
            error.add_note(f"and while leaving the client: {lost}")

    def __del__(self) -> None:
        io = getattr(self, "_io", None)  # Missing if the constructor has raised.
        if io is None or io.closing or exit_flush.is_exiting():
            return
        message = f"unclosed client to {self._location}: call close(), or use the client in a with block"
        if io.driver.running:
            # Its thread goes on, and finalizers of the same garbage may emit: it lives until the exit hook closes it.
            # The garbage collector has cleared the weak references to it.
            exit_flush.register(self, io)
            exit_flush.keep_alive(self)
            register_after_fork(self._after_fork)
        elif lost := io.undelivered():
            message = f"{message}; {lost}"
        warnings.warn(message, ResourceWarning, source=self, stacklevel=2)

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(type(self), threaded=self._threaded, **self._given), (self._location,)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "connected" if self.connected else "not connected"
        if self._io is not None and (why := self._io.why):
            state += f": {why}"
        return f"<Client {self._location} {state}>"

    def _after_fork(self) -> None:
        """In a forked child: open a new connection at the next use. Queued events belong to the parent."""
        # Threads of the parent may hold the locks, and do not exist here.
        self._open_lock = threading.RLock()
        io, self._io = self._io, None
        if io is not None:
            io.abandon()
