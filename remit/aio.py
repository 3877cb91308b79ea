"""`AsyncClient` and `AsyncServer`: client and server with awaitable methods, for asyncio.

A thread pumps each link, and the event loop runs the listeners. The receive of a transport is never awaited, so a
cancellation loses no event.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Self, TypeVar

from remit._io.send_queue import WouldBlock
from remit._patterns.pubsub import Subscription
from remit.client import Client
from remit.location import Location
from remit.server import Server

__all__ = ["AsyncClient", "AsyncServer"]

T = TypeVar("T")


class AsyncClient:
    """A `Client` with awaitable methods. Its listeners, plain or async, run on the event loop.

    Takes the arguments of `Client`. Create and use it on one loop: ``async with AsyncClient(...) as client``.
    """

    def __init__(self, location: str | Location | None = None, **options: Any) -> None:
        self._client = Client(location, **options)
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def location(self) -> Location:
        """Location of the server."""
        return self._client.location

    async def emit(self, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Emit an event. Waits only while the queue is full. Raises what `Client.emit` raises."""
        self._forbid_waiting()
        try:
            self._client.emit(name, *args, **kwargs)
        except WouldBlock:
            # A thread of the executor may wait. A cancellation does not stop it: the event is queued all the same.
            await self._in_thread(functools.partial(self._client.emit, name, *args, **kwargs))

    async def request(
        self, name: str, /, *args: Any, on_progress: Callable[..., Any] | None = None, **kwargs: Any
    ) -> Any:
        """Send a request and return the value that the server's first listener of this name returns.

        Arguments and errors are those of `Client.request`. Cancelling the call cancels the request on the server.
        ``on_progress``, plain or async, is called on the loop.
        """
        progress = None if on_progress is None else self._on_loop(on_progress)
        ask = functools.partial(self._client.submit, name, *args, on_progress=progress, **kwargs)
        self._forbid_waiting()
        try:
            asked = ask()
        except WouldBlock:
            asked = await self._in_thread(ask, Future.cancel)
        return await asyncio.wrap_future(asked)

    async def subscribe(
        self, pattern: str, listener: Callable[..., Any], *, on_gap: Callable[..., Any] | None = None, **options: Any
    ) -> Subscription:
        """Subscribe to publications. Returns when the server has confirmed the subscription. Like `Client.subscribe`.

        ``listener`` and ``on_gap``, plain or async, are called on the loop.
        """
        gap = None if on_gap is None else self._on_loop(on_gap)
        subscribe = functools.partial(self._client.subscribe, pattern, self._on_loop(listener), on_gap=gap, **options)
        return await self._in_thread(subscribe, Subscription.close)

    def add_listener(self, name: str, listener: Callable[..., Any], *, pass_event: bool = False) -> None:
        """Call ``listener`` on the loop for each event of this name that the server emits to this client."""
        self._client.add_listener(name, self._on_loop(listener), pass_event=pass_event)

    async def flush(self, timeout: float | None = None) -> bool:
        """Wait until the server has handled all events; return False after ``timeout`` seconds, or else ``linger``."""
        return await self._in_thread(functools.partial(self._client.flush, timeout))

    def stats(self) -> dict[str, int]:
        """Return the counters of `Client.stats`."""
        return self._client.stats()

    async def aclose(self, linger: float | None = None) -> None:
        """Wait up to ``linger`` seconds until all events are confirmed, then close. Raises Undelivered."""
        await self._in_thread(functools.partial(self._client.close, linger))

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        return self

    async def __aexit__(self, *raised: Any) -> None:
        await self._in_thread(functools.partial(self._client.__exit__, *raised))

    def _forbid_waiting(self) -> None:
        """Make `Client.emit` raise WouldBlock in this thread instead of waiting for room in the queue."""
        (self._client._io or self._client._open()).send_queue.nonblocking_thread = threading.get_ident()

    async def _in_thread(self, call: Callable[[], T], undo: Callable[[T], object] | None = None) -> T:
        """Run a blocking call in a thread. A cancellation does not stop the call: ``undo`` then gets its result."""
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(None, call)

        def ended(_: object) -> None:
            if not running.cancelled() and running.exception() is None and undo is not None:
                with contextlib.suppress(RuntimeError):  # The loop is closed already.
                    loop.run_in_executor(None, undo, running.result())

        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            running.add_done_callback(ended)
            raise

    def _on_loop(self, listener: Callable[..., Any]) -> Callable[..., Any]:
        """Return a listener for the dispatch thread, which runs ``listener`` on the loop and waits for it."""
        if not callable(listener):
            raise TypeError(f"a listener must be callable, not {listener!r}")
        loop = self._loop or asyncio.get_running_loop()

        @functools.wraps(listener)
        def call_on_loop(*args: Any, **kwargs: Any) -> None:
            async def call() -> None:
                value = listener(*args, **kwargs)
                if inspect.isawaitable(value):
                    await value

            asyncio.run_coroutine_threadsafe(call(), loop).result()

        return call_on_loop


class AsyncServer(Server):
    """A `Server` whose listeners, plain or async, run on the event loop: ``async with AsyncServer(...) as server``.

    Takes the arguments of `Server`. The events of one client are dispatched in order, each after the listeners of the
    previous event have returned. Requests run concurrently.
    """

    def __init__(self, location: str | Location | None = None, **options: Any) -> None:
        super().__init__(location, **options)
        self._serving: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._serving = asyncio.get_running_loop().create_task(self.serve())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self, linger: float | None = None) -> None:
        """Stop dispatching, then close as `Server.close`."""
        serving, self._serving = self._serving, None
        try:
            if serving is not None:
                serving.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await serving
        finally:
            await asyncio.get_running_loop().run_in_executor(None, functools.partial(self.close, linger))
