"""Serving: a server on an event loop: a thread serves the link, the loop dispatches and awaits its listeners."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Sequence
from concurrent.futures import CancelledError
from typing import Any, Final, Protocol

from remit._io.pump import ServerPump
from remit._io.server_io import ServerIO
from remit._patterns.request_reply import (
    IncomingRequest,
    RequestServer,
    error_reply,
    late_reply,
    send_reply,
    value_reply,
)
from remit._protocol.session import Received, Session
from remit.codec import EventMessage
from remit.errors import LinkClosed
from remit.event import Event, Sender

__all__ = ["Served", "serve"]


IDLE: Final = 60.0
"""Seconds that the thread of an idle server sleeps at the most; whatever arrives wakes it."""
FULL: Final = 0.01
"""Seconds after which it looks again whether a client takes more."""
TURN: Final = 64
"""Frames of events that are dispatched before the loop has its turn."""


class Served(Protocol):
    """A server as whoever serves it sees it."""

    keeping: ServerIO
    answering: RequestServer
    later: list[tuple[Event, Awaitable[Any]]] | None
    """What listeners returned that is to be awaited."""

    @property
    def is_open(self) -> bool:
        """Whether it has a location open."""
        ...

    def wake(self) -> None:
        """Make who waits for it return."""
        ...

    def sender(self, session: Session, /) -> Sender:
        """Return the client of a session as listeners see it."""
        ...

    def post(self, session: Session, name: str, args: tuple[Any, ...], /) -> None:
        """Send an answer."""
        ...

    def tell_of_sessions(self, endpoint: ServerPump, /) -> None:
        """Let those who keep something of a session know what befell it."""
        ...

    def _dispatch(self, wires: Sequence[EventMessage], sender: Sender | None, redelivered: bool) -> None: ...

    def _failed(self, event: Event, error: Exception) -> None: ...


async def serve(server: Served, endpoint: ServerPump) -> None:
    """Dispatch what arrives, until cancelled or closed."""
    service = AsyncServerLoop(server, endpoint)
    try:
        await service.run()
    finally:
        await service.end()


class AsyncServerLoop:
    """What serves one server on one loop: a thread that pumps, and the loop's side that dispatches."""

    def __init__(self, server: Served, endpoint: ServerPump) -> None:
        self._server = server
        self._endpoint = endpoint
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._answers: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._broken: Exception | None = None
        """What ended the thread, if it was not this end."""
        self._thread = threading.Thread(target=self._serve_link, name="remit-aio", daemon=True)

    async def run(self) -> None:
        """Dispatch until cancelled."""
        server = self._server
        server.later, server.answering.answer_later = [], self._answer_later
        self._thread.start()
        while server.is_open:
            await self._arrived.wait()
            self._arrived.clear()
            await self._dispatch()
            if self._broken is not None and server.is_open:
                raise self._broken

    async def end(self) -> None:
        """End the thread and the answers under way."""
        self._stopping = True
        self._server.wake()
        self._server.later, self._server.answering.answer_later = None, None
        for task in self._answers:
            task.cancel()
        await self._loop.run_in_executor(None, self._thread.join)

    # -- the thread --------------------------------------------------------------------------------------------

    def _serve_link(self) -> None:
        try:
            self._pump()
        except Exception as error:  # noqa: BLE001 - for whoever awaits this service
            self._broken = error
        finally:
            self._tell_the_loop()

    def _tell_the_loop(self) -> None:
        with contextlib.suppress(RuntimeError):  # The loop is closed: nobody hears any more.
            self._loop.call_soon_threadsafe(self._arrived.set)

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
            if machine.ready or machine.closed or machine.cancelled_requests:
                self._tell_the_loop()

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
                server._dispatch((wire,), server.sender(session), redelivered)
                while server.later:
                    await self._await(*server.later.pop(0))
                done += 1
        except BaseException as error:
            # What was cancelled counts as not handled: whoever serves next begins with it. What a listener ended by
            # SystemExit or KeyboardInterrupt counts as handled.
            done += not isinstance(error, asyncio.CancelledError)
            if rest := wires[done:]:
                machine.ready.appendleft((session, rest, len(rest) if count else 0, redelivered))
            count = done if count else 0
            raise
        finally:
            session.mark_handled(count)
            machine.writable[session] = None
            server.keeping.waker.wake()

    async def _await(self, event: Any, awaitable: Awaitable[Any]) -> None:
        try:
            await awaitable
        except asyncio.CancelledError as error:
            if _cancelled():
                raise
            reported = CancelledError("what the listener awaited was cancelled")
            reported.__cause__ = error
            self._server._failed(event, reported)
        except Exception as error:  # noqa: BLE001 - one listener must not stop the others
            self._server._failed(event, error)

    def _answer_later(self, session: Session, question: IncomingRequest, value: Awaitable[Any]) -> None:
        task = self._loop.create_task(self._answer(session, question, value))
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def _answer(self, session: Session, question: IncomingRequest, value: Awaitable[Any]) -> None:
        try:
            async with asyncio.timeout(
                None if question.remaining_ms is None else question.remaining_ms / 1000
            ) as bound:
                outcome = value_reply(session.codec, await value)
        except TimeoutError as error:
            outcome = late_reply(session.codec) if bound.expired() else error_reply(session.codec, error)
        except asyncio.CancelledError as error:
            if _cancelled():
                send_reply(
                    self._server.post, session, question.id, error_reply(session.codec, LinkClosed("the server ends"))
                )
                raise
            outcome = error_reply(session.codec, error)
        except Exception as error:  # noqa: BLE001 - whatever a listener raises, whoever asked has to know
            outcome = error_reply(session.codec, error)
        send_reply(self._server.post, session, question.id, outcome)


def _cancelled() -> bool:
    """Whether the running task itself was cancelled, and not only something that its listener awaited."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
