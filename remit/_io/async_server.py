"""Serves a Server on an event loop: a thread pumps the link, the loop dispatches events and awaits listeners."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, Final

from remit._io.server_io import FULL_POLL_INTERVAL_S, ServerIO
from remit._patterns.request_reply import IncomingRequest, error_reply, late_reply, send_reply, value_reply
from remit._protocol.session import Received, Session, mark_events_handled
from remit.errors import LinkClosed

if TYPE_CHECKING:
    from remit.server import Server

IDLE_WAIT_S: Final = 60.0
"""Upper bound of one wait on an idle link; frames and the waker end it."""
FRAMES_PER_TURN: Final = 64
"""Frames dispatched in a row before other tasks of the loop run."""


class AsyncServerLoop:
    """Serves one server on the running loop. The thread only pumps; everything else runs on the loop."""

    def __init__(self, server: Server, io: ServerIO) -> None:
        self._server = server
        self._io = io
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._replies: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._broken: Exception | None = None
        """Error that ended the thread."""
        self._thread = threading.Thread(target=self._run_thread, name="remit-aio", daemon=True)

    async def serve(self) -> None:
        """Dispatch until cancelled, or until the server is closed. Raises the error of a broken link."""
        self._server._awaitables, self._server._requests.answer_later = [], self._reply_later
        self._thread.start()
        try:
            while not self._io.closed:
                await self._arrived.wait()
                self._arrived.clear()
                await self._dispatch()
                if self._broken is not None and not self._io.closed:
                    raise self._broken
        finally:
            self._stopping = True
            self._server.wake()
            self._server._awaitables, self._server._requests.answer_later = None, None
            for task in self._replies:
                task.cancel()
            await self._loop.run_in_executor(None, self._thread.join)

    # -- the thread --------------------------------------------------------------------------------------------

    def _run_thread(self) -> None:
        machine = self._io.machine
        try:
            while self._pump():
                if machine.ready or machine.closed or machine.cancelled_requests:
                    self._wake_loop()
        except Exception as error:  # noqa: BLE001 - raised by serve()
            self._broken = error
        finally:
            self._wake_loop()

    def _wake_loop(self) -> None:
        with contextlib.suppress(RuntimeError):  # The loop is closed already.
            self._loop.call_soon_threadsafe(self._arrived.set)

    def _pump(self) -> bool:
        """Exchange frames, after a wait if the link is idle. Return False after `serve` or the server has ended."""
        io, pump = self._io, self._io.link_pump
        with pump.lock:
            # Read under the lock: close() may have closed the link while this thread waited for the lock.
            if self._stopping or io.closed:
                return False
            if pump.exchange():
                pump.wait(FULL_POLL_INTERVAL_S if io.machine.writable else IDLE_WAIT_S, io.waker)
                io.waker.clear()
                pump.exchange()
            io.pumped_at = time.monotonic()
        return True

    # -- the loop ----------------------------------------------------------------------------------------------

    async def _dispatch(self) -> None:
        frames = 0
        self._io.report_sessions()
        while received := self._io.link_pump.pop_received():
            await self._handle(received)
            frames += 1
            if frames % FRAMES_PER_TURN == 0:
                await asyncio.sleep(0)

    async def _handle(self, received: Received) -> None:
        session, redelivered = received.session, received.redelivered
        server, machine = self._server, self._io.machine
        done = 0
        try:
            for wire in received.events:
                server._dispatch((wire,), self._io.sender_of(session), redelivered)
                while server._awaitables:
                    await self._await(*server._awaitables.pop(0))
                done += 1
        except BaseException as error:
            # A cancelled event counts as not handled: the next serve() starts with it. An event whose listener raised
            # SystemExit or KeyboardInterrupt counts as handled.
            done += not isinstance(error, asyncio.CancelledError)
            raise
        finally:
            mark_events_handled(received, done, machine.ready)
            machine.writable[session] = None
            self._io.waker.wake()

    async def _await(self, event: Any, awaitable: Awaitable[Any]) -> None:
        try:
            await awaitable
        except asyncio.CancelledError as error:
            if _is_cancelled():
                raise
            reported = CancelledError("what the listener awaited was cancelled")
            reported.__cause__ = error
            self._server._report_error(event, reported)
        except Exception as error:  # noqa: BLE001 - one listener must not stop the others
            self._server._report_error(event, error)

    def _reply_later(self, session: Session, request: IncomingRequest, value: Awaitable[Any]) -> None:
        task = self._loop.create_task(self._reply(session, request, value))
        self._replies.add(task)
        task.add_done_callback(self._replies.discard)

    async def _reply(self, session: Session, request: IncomingRequest, value: Awaitable[Any]) -> None:
        post = self._server._post
        seconds = None if request.remaining_ms is None else request.remaining_ms / 1000
        try:
            async with asyncio.timeout(seconds) as bound:
                outcome = value_reply(session.codec, await value)
        except TimeoutError as error:
            outcome = late_reply(session.codec) if bound.expired() else error_reply(session.codec, error)
        except asyncio.CancelledError as error:
            if _is_cancelled():
                send_reply(post, session, request.id, error_reply(session.codec, LinkClosed("the server ends")))
                raise
            outcome = error_reply(session.codec, error)
        except Exception as error:  # noqa: BLE001 - any error of a listener goes to the client
            outcome = error_reply(session.codec, error)
        send_reply(post, session, request.id, outcome)


def _is_cancelled() -> bool:
    """Return True if the running task itself is cancelled, and not only an awaitable of its listener."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
