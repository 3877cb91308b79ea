"""`AsyncClient` and `AsyncServer`: client and server with awaitable methods, for asyncio.

A thread pumps each link, and the event loop runs the listeners. The receive of a transport is never awaited, so a
cancellation loses no event.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Callable
from typing import Any, Self, TypeVar

from remit._io.async_server import let_requests_overtake
from remit._io.client_io import ClientIO
from remit._io.loop_threads import BlockOwner, LoopCalls, call_in_thread, finish_uncancelled, on_running_loop
from remit._io.send_queue import ROOM_POLL_INTERVAL_S, WouldBlock
from remit._patterns.names import SUBSCRIBE
from remit._patterns.pubsub import OnGap, Subscription
from remit._patterns.request_reply import OnProgress
from remit.client import Client
from remit.errors import Undelivered
from remit.event import Event
from remit.listeners import Function, OnError
from remit.location import Location
from remit.options import QUEUE_BYTES, check_count
from remit.server import MAX_CONCURRENCY, Server

__all__ = ["AsyncClient", "AsyncServer"]

T = TypeVar("T")


class AsyncClient:
    """A `Client` with awaitable methods. Its listeners, plain or async, run on the event loop that uses it.

    Takes the arguments of `Client`, except ``threaded``. It may be created before the loop runs, and be used by one
    loop after the other: listeners and subscriptions follow. Events that arrive between two loops wait for the next.
    """

    def __init__(
        self, location: str | Location | None = None, *, on_error: OnError | None = None, **options: Any
    ) -> None:
        if "threaded" in options:
            raise TypeError("an AsyncClient always runs its own threads: leave out the argument threaded")
        self._options = options
        self._on_error = on_error
        self._calls = LoopCalls()
        self._client = _LoopClient(self._calls, location, on_error=on_error, **options)
        self._room = asyncio.Event()
        """Set when the full queue may have room."""

    @property
    def location(self) -> Location:
        """Location of the server."""
        return self._client.location

    @property
    def connected(self) -> bool:
        """Whether a server has accepted this client on the present connection."""
        return self._client.connected

    @property
    def silence(self) -> float:
        """Seconds since the last frame from the server; infinity before the first one."""
        return self._client.silence

    def stats(self) -> dict[str, Any]:
        """Return the counters of `Client.stats`."""
        return self._client.stats()

    async def start(self) -> None:
        """Connect now, not at the first use. The running loop runs the listeners from now on."""
        await self._open()
        self._client.start()

    async def emit(self, name: str | Event, /, *args: Any, **kwargs: Any) -> None:
        """Emit an event. Waits only while the queue is full. Raises what `Client.emit` raises."""
        await self._call(functools.partial(self._client.emit, name, *args, **kwargs))

    async def flush(self, timeout: float | None = None) -> bool:
        """Wait until the server has handled all events; return False after ``timeout`` seconds, or else ``linger``."""
        self._calls.use_running_loop()
        return await call_in_thread(functools.partial(self._client.flush, timeout))

    async def request(
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

        Arguments and errors are those of `Client.request`. Cancelling the call cancels the request on the server, and
        its listener there if it is async. ``on_progress``, plain or async, is called on the loop.
        """
        options: dict[str, Any] = {"timeout": timeout, "idempotent": idempotent, "on_progress": on_progress}
        return await (await self.submit(name, *args, **options, **kwargs))

    async def submit(
        self,
        name: str | Event,
        /,
        *args: Any,
        timeout: float | None = None,
        idempotent: bool = False,
        on_progress: OnProgress | None = None,
        **kwargs: Any,
    ) -> asyncio.Future[Any]:
        """Send a request and return a future of its result. Cancelling the future cancels the request on the server.

        Waits only while the queue is full. Arguments and errors are those of `request`.
        """
        progress = None if on_progress is None else self._calls.wrap(on_progress)
        options: dict[str, Any] = {"timeout": timeout, "idempotent": idempotent, "on_progress": progress}
        io = self._client._io or await self._open()
        let_requests_overtake(io.machine.session.id)
        return on_running_loop(
            await self._call(functools.partial(self._client.submit, name, *args, **options, **kwargs))
        )

    def add_listener(
        self, name: str, listener: Callable[..., Any], *, pass_event: bool = False, once: bool = False
    ) -> None:
        """Call ``listener`` on the loop for each event of this name that the server emits to this client."""
        self._client.add_listener(name, listener, pass_event=pass_event, once=once)

    def once(self, name: str, listener: Callable[..., Any], *, pass_event: bool = False) -> None:
        """Call ``listener`` for the next such event only. Otherwise as `add_listener`."""
        self._client.once(name, listener, pass_event=pass_event)

    def on(self, name: str, *, pass_event: bool = False) -> Callable[[Function], Function]:
        """Decorate a listener: ``@client.on("job.*")``."""
        return self._client.on(name, pass_event=pass_event)

    def remove_listener(self, name: str, listener: Callable[..., Any] | None = None) -> bool:
        """Remove the newest registration of ``listener`` under this name, or all of the name without a listener.

        Return False if there is none.
        """
        return self._client.remove_listener(name, listener)

    async def subscribe(
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
        """Subscribe to publications. Returns when the server has confirmed the subscription. Like `Client.subscribe`.

        ``listener`` and ``on_gap``, plain or async, are called on the loop.
        """
        await self._open()
        subscription = self._client._new_subscription(
            pattern, listener, (queue, when_full, max_lag, last, queue_bytes), on_gap, pass_event=pass_event
        )
        try:
            await self.request(SUBSCRIBE, *subscription._request_args, timeout=timeout, idempotent=True)
        except BaseException:
            subscription.close()
            raise
        return subscription

    async def close(self, linger: float | None = None) -> None:
        """Wait up to ``linger`` seconds until all events are confirmed, then close. Idempotent. Raises Undelivered.

        A cancellation ends the wait: the client is closed, and the unconfirmed events are logged.
        """
        self._calls.release_caller()
        io = self._client._io
        closing = call_in_thread(functools.partial(self._client.close, linger))
        await finish_uncancelled(closing, hurry=(lambda: None) if io is None else io.end_waits)

    async def aclose(self, linger: float | None = None) -> None:
        """Close, under the name that `contextlib.aclosing` calls."""
        await self.close(linger)

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except asyncio.CancelledError:
            await self.close(0.0)  # The thread that connects goes on, and no block will close the client.
            raise
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            await self.close()
        except Undelivered as lost:
            if error is None:
                raise
            error.add_note(f"and while leaving the client: {lost}")

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(type(self), on_error=self._on_error, **self._options), (self._client.location,)

    def __repr__(self) -> str:
        return repr(self._client).replace("Client", "AsyncClient", 1)

    async def _open(self) -> ClientIO:
        """Use the running loop from now on, and connect. In a thread: some transports wait for their backend."""
        if self._calls.use_running_loop():
            self._room = asyncio.Event()
        io = self._client._io
        return await call_in_thread(self._client._open) if io is None else io

    async def _call(self, call: Callable[[], T]) -> T:
        """Call a method that queues an event. While the queue is full, wait for room without blocking the loop."""
        loop, io = asyncio.get_running_loop(), self._client._io
        if io is None or loop is not self._calls.loop:
            io = await self._open()
        queue = io.send_queue
        # Only in this thread the client must raise WouldBlock instead of waiting for room.
        queue.nonblocking_thread = threading.get_ident()
        try:
            return call()
        except WouldBlock as full:
            (name,) = full.args
        deadline = loop.time() + self._client._options.emit_timeout
        while (left := deadline - loop.time()) > 0:
            self._room.clear()
            queue.on_room = functools.partial(self._calls.notify, self._room.set)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, ROOM_POLL_INTERVAL_S)):
                    await self._room.wait()
            with contextlib.suppress(WouldBlock):
                return call()
        raise queue.timeout_error(name)


class _LoopClient(Client):
    """The client of an `AsyncClient`: its callbacks run on the event loop."""

    def __init__(
        self, calls: LoopCalls, location: str | Location | None, *, on_error: OnError | None, **options: Any
    ) -> None:
        self._calls = calls
        super().__init__(location, on_error=on_error, **options)
        if on_error is not None:
            self._on_error = functools.partial(calls.notify, on_error)

    def _adapt(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return self._calls.wrap(function)

    def close(self, linger: float | None = None) -> None:
        self._calls.close()
        super().close(linger)


class AsyncServer(Server):
    """A `Server` whose listeners, plain or async, run on the event loop: ``async with AsyncServer(...) as server``.

    Takes the arguments of `Server`, and ``concurrency``, the number of async listeners that run at a time in the block.
    The events of one client are handled in order, each after the listeners of the previous event have returned;
    clients and requests are served concurrently. If the server loses its location, its block is cancelled and raises
    the cause.
    """

    def __init__(
        self, location: str | Location | None = None, *, concurrency: int = MAX_CONCURRENCY, **options: Any
    ) -> None:
        check_count("concurrency", concurrency)
        self._concurrency = concurrency
        self._serving: asyncio.Task[None] | None = None
        self._owner: BlockOwner | None = None
        super().__init__(location, **options)

    async def serve(self, *, concurrency: int = MAX_CONCURRENCY) -> None:
        """Serve as `Server.serve`; within ``async with``, wait until the service ends. Raises its error."""
        serving = self._serving
        if serving is None:
            await super().serve(concurrency=concurrency)
            return
        await asyncio.wait([serving])
        if not serving.cancelled():
            serving.result()

    async def __aenter__(self) -> Self:
        try:
            self._owner = BlockOwner()
            self._serving = asyncio.get_running_loop().create_task(super().serve(concurrency=self._concurrency))
            self._serving.add_done_callback(self._on_end)
            await asyncio.sleep(0)  # The service begins: events that the block emits locally find it.
            if self._serving.done():
                self._serving.result()
        except BaseException:
            self._owner = None
            await self.aclose()
            raise
        return self

    def _on_end(self, serving: asyncio.Task[None]) -> None:
        """End the block of a server that has lost its location."""
        failed = not serving.cancelled() and serving.exception() is not None
        if failed and serving is self._serving and self._owner is not None:
            self._owner.cancel()

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        raises = True
        try:
            raises = self._owner is None or self._owner.leave(error)
            await self.aclose()
        except Exception as cause:
            if raises:
                raise cause from None
            if error is not None and cause is not error:
                error.add_note(f"and while leaving the server: {cause}")
        finally:
            self.close(0.0)  # Again, if it was interrupted.

    async def aclose(self, linger: float | None = None) -> None:
        """Stop dispatching, then close as `Server.close`. Raises the error that has ended the service."""
        serving, self._serving = self._serving, None
        if serving is not None:
            serving.cancel()
        await finish_uncancelled(asyncio.get_running_loop().create_task(self._close(serving, linger)))

    async def _close(self, serving: asyncio.Task[None] | None, linger: float | None) -> None:
        if serving is not None:
            await asyncio.wait([serving])
        await call_in_thread(functools.partial(self.close, linger))
        if serving is not None and not serving.cancelled():
            serving.result()
