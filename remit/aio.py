"""Asyncio: the same two ends for an event loop. A thread serves each link; the loop only hears and speaks.

No receive of a transport is ever cancelled, since none is awaited: to cancel a wait loses nothing that has arrived.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Self

from remit.client import Client
from remit.endpoint import ServerEndpoint
from remit.errors import LinkClosed, Undelivered
from remit.listeners import Listening
from remit.location import Location
from remit.patterns.answering import Question, late, reply, send, told
from remit.patterns.following import Subscription
from remit.protocol.session import Received, Session
from remit.server import Server

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["AsyncClient", "AsyncServer", "serve"]

IDLE: Final = 60.0
"""Seconds that the thread of an idle server sleeps at the most; whatever arrives wakes it."""
FULL: Final = 0.01
"""Seconds after which it looks again whether a client takes more."""
TURN: Final = 64
"""Frames of events that are dispatched before the loop has its turn."""


class AsyncClient:
    """A `Client` whose waits are awaited, and whose listeners, plain or async, run on the loop.

    Takes what `Client` takes. To be made and used on one loop, as ``async with AsyncClient(...) as client``.
    """

    def __init__(self, location: str | Location | None = None, **options: Any) -> None:
        self._client = Client(location, **options)
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def location(self) -> Location:
        """Where the server is reached."""
        return self._client.location

    async def emit(self, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Emit an event; waits only while the queue is full. Raises what `Client.emit` raises."""
        if self._client.crowded:
            # Once begun it goes on though nobody awaits it any more: an event is taken, or not, but never half.
            await self._elsewhere(functools.partial(self._client.emit, name, *args, **kwargs))
        else:
            self._client.emit(name, *args, **kwargs)

    async def request(
        self, name: str, /, *args: Any, on_progress: Callable[..., Any] | None = None, **kwargs: Any
    ) -> Any:
        """Return what a listener of this name returns there. To cancel it tells the server. Like `Client.request`.

        ``on_progress``, plain or async, is called on the loop.
        """
        told = None if on_progress is None else self._on_loop(on_progress)
        return await asyncio.wrap_future(self._client.submit(name, *args, on_progress=told, **kwargs))

    async def subscribe(
        self, pattern: str, listener: Callable[..., Any], *, on_gap: Callable[..., Any] | None = None, **options: Any
    ) -> Subscription:
        """Hear what the server publishes from now on; returns when it has confirmed. Like `Client.subscribe`.

        ``listener`` and ``on_gap``, plain or async, are called on the loop.
        """
        gap = None if on_gap is None else self._on_loop(on_gap)
        subscribe = functools.partial(self._client.subscribe, pattern, self._on_loop(listener), on_gap=gap, **options)
        subscription: Subscription = await self._elsewhere(subscribe)
        return subscription

    def add_listener(self, name: str, listener: Callable[..., Any], *, pass_event: bool = False) -> None:
        """Call ``listener`` on the loop for each such event that the server emits to this client."""
        self._client.add_listener(name, self._on_loop(listener), pass_event=pass_event)

    async def flush(self, timeout: float | None = None) -> bool:
        """Wait until every event so far is confirmed as handled; False after ``timeout`` (or linger) seconds."""
        flushed: bool = await self._elsewhere(functools.partial(self._client.flush, timeout))
        return flushed

    def stats(self) -> dict[str, int]:
        """Return counters, as `Client.stats` does."""
        return self._client.stats()

    async def aclose(self, linger: float | None = None) -> None:
        """Wait up to ``linger`` seconds until all is confirmed, then end. Raises Undelivered."""
        await self._elsewhere(functools.partial(self._client.close, linger))

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.aclose()
        except Undelivered as lost:
            if error is None:
                raise
            error.add_note(f"and while leaving the client: {lost}")

    async def _elsewhere(self, call: Callable[[], Any]) -> Any:
        """Run what waits in a thread; a cancelled wait lets it end by itself."""
        return await asyncio.get_running_loop().run_in_executor(None, call)

    def _on_loop(self, listener: Callable[..., Any]) -> Callable[..., Any]:
        """Return a listener for the dispatch thread, which returns when the one on the loop has."""
        if not callable(listener):
            raise TypeError(f"a listener is called, but {listener!r} cannot be")
        loop = self._loop or asyncio.get_running_loop()

        @functools.wraps(listener)
        def hear(*args: Any, **kwargs: Any) -> None:
            async def call() -> None:
                value = listener(*args, **kwargs)
                if inspect.isawaitable(value):
                    await value

            asyncio.run_coroutine_threadsafe(call(), loop).result()

        return hear


class AsyncServer(Server):
    """A `Server` whose listeners, plain or async, run on the loop: ``async with AsyncServer(...) as server``.

    Takes what `Server` takes. Events of one client are handled in order, each when the listeners of the one before have
    returned; requests are answered side by side.
    """

    def __init__(self, location: str | Location | None = None, **options: Any) -> None:
        super().__init__(location, **options)
        self._serving: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._serving = asyncio.get_running_loop().create_task(self.serve())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self, linger: float | None = None) -> None:
        """Confirm what was handled, tell the clients, and end within ``linger`` seconds."""
        if self._serving is not None:
            self._serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._serving
            self._serving = None
        await asyncio.get_running_loop().run_in_executor(None, functools.partial(self.close, linger))


async def serve(server: Server, endpoint: ServerEndpoint) -> None:
    """Dispatch what arrives, until cancelled or closed."""
    service = _Service(server, endpoint)
    try:
        await service.run()
    finally:
        await service.end()


class _Service:
    """What serves one server on one loop: a thread that pumps, and the loop's side that dispatches."""

    def __init__(self, server: Server, endpoint: ServerEndpoint) -> None:
        self._server = server
        self._endpoint = endpoint
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._answers: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._thread = threading.Thread(target=self._pump, name="remit-aio", daemon=True)

    async def run(self) -> None:
        """Dispatch until cancelled."""
        server = self._server
        server.later, server.answering.later = [], self._answer_later
        self._thread.start()
        while server.is_open:
            await self._arrived.wait()
            self._arrived.clear()
            await self._dispatch()

    async def end(self) -> None:
        """End the thread and the answers under way."""
        self._stopping = True
        self._server.stop()
        self._server.later, self._server.answering.later = None, None
        for task in self._answers:
            task.cancel()
        await self._loop.run_in_executor(None, self._thread.join)

    # -- the thread --------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        endpoint, server = self._endpoint, self._server
        machine = endpoint.machine
        while not self._stopping and server.is_open:
            with endpoint.lock:
                if self._stopping or not server.is_open:
                    return
                drained = endpoint.pump()
                if drained:
                    endpoint.wait(FULL if machine.writable else IDLE, server.keeping.waker)
                    server.keeping.waker.clear()
                    endpoint.pump()
                server.keeping.pumped = time.monotonic()
            if machine.ready or machine.closed or machine.cancelled:
                with contextlib.suppress(RuntimeError):  # The loop is closed: nobody hears any more.
                    self._loop.call_soon_threadsafe(self._arrived.set)

    # -- the loop ----------------------------------------------------------------------------------------------

    async def _dispatch(self) -> None:
        turn = 0
        self._server.tell_of_sessions(self._endpoint)
        while received := self._endpoint.events():
            await self._handle(received)
            turn += 1
            if turn % TURN == 0:
                await asyncio.sleep(0)

    async def _handle(self, received: Received) -> None:
        session, wires, count, redelivered = received
        server, machine = self._server, self._endpoint.machine
        done = 0
        try:
            for wire in wires:
                Listening._dispatch(server, (wire,), server.sender(session), redelivered)
                while server.later:
                    await self._await(*server.later.pop(0))
                done += 1
        except asyncio.CancelledError:
            # What was interrupted counts as not handled: whoever serves next begins with it.
            rest = wires[done:]
            machine.ready.appendleft((session, rest, len(rest) if count else 0, redelivered))
            count = done if count else 0
            raise
        finally:
            session.finish(count)
            machine.writable[session] = None
            server.keeping.waker.wake()

    async def _await(self, event: Any, awaitable: Awaitable[Any]) -> None:
        try:
            await awaitable
        except Exception as error:  # noqa: BLE001 - one listener must not stop the others
            self._server._failed(event, error)

    def _answer_later(self, session: Session, question: Question, value: Awaitable[Any]) -> None:
        task = self._loop.create_task(self._answer(session, question, value))
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def _answer(self, session: Session, question: Question, value: Awaitable[Any]) -> None:
        try:
            async with asyncio.timeout(None if question.left is None else question.left / 1000) as bound:
                outcome = reply(session.codec, await value)
        except TimeoutError as error:
            outcome = late(session.codec) if bound.expired() else told(session.codec, error)
        except asyncio.CancelledError:
            send(self._server.post, session, question.id, told(session.codec, LinkClosed("the server ends")))
            raise
        except Exception as error:  # noqa: BLE001 - whatever a listener raises, whoever asked has to know
            outcome = told(session.codec, error)
        send(self._server.post, session, question.id, outcome)
