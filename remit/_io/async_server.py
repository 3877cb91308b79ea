"""Serves a Server on an event loop: a thread pumps the link, the loop dispatches events and awaits listeners."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from remit._io.loop_threads import finish_uncancelled
from remit._io.server_io import FULL_POLL_INTERVAL_S, ServerIO
from remit._patterns.names import REQUEST
from remit._patterns.request_reply import IncomingRequest, Reply, error_reply, late_reply, send_reply, value_reply
from remit._protocol.session import Received, Session
from remit.errors import LinkClosed, ReentrantTick
from remit.event import Event

if TYPE_CHECKING:
    from remit.server import Server

logger = logging.getLogger("remit")

IDLE_WAIT_S: Final = 60.0
"""Upper bound of one wait on an idle link; frames and the waker end it."""
FRAMES_PER_TURN: Final = 64
"""Frames dispatched in a row before other tasks of the loop run."""
CANCEL_TIMEOUT_S: Final = 1.0
"""Seconds that the end of `AsyncServerLoop.serve` waits for listeners to handle their cancellation."""

Pending: TypeAlias = tuple[Event, Awaitable[Any]]
"""An event, and what an async listener has returned for it."""


class AsyncListeners:
    """Runs the async listeners of one server as tasks of the running loop.

    ``fail`` is called with SystemExit and the like, and ``freed`` after the end of each task.
    """

    def __init__(
        self, server: Server, fail: Callable[[BaseException], None], freed: Callable[[], None] = lambda: None
    ) -> None:
        self.collected: list[Pending] | None = None
        """Receives the awaitables of the present event, for a caller that awaits them itself."""
        self._server = server
        self._fail = fail
        self._freed = freed
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._tasks: set[asyncio.Task[None]] = set()
        self._requests: dict[Session, dict[int, asyncio.Task[None]]] = {}
        server._defer_to, server._requests.answer_later = self._defer, self._answer_later
        server._router.request_cancelled.append(self._cancel_request)
        server._router.session_closed.append(self._cancel_requests_of)

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, function: Callable[..., Any], *args: Any) -> asyncio.Task[None]:
        """Start ``function(*args)`` as a task, which counts until it ends."""
        task = self._loop.create_task(self._guard(function, *args))
        self._tasks.add(task)
        task.add_done_callback(self._finish)
        return task

    async def _guard(self, function: Callable[..., Any], *args: Any) -> None:
        try:
            await function(*args)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - raised by serve(); a task would raise it in the loop itself
            self._fail(error)

    async def run(self, event: Event, awaitable: Awaitable[Any]) -> None:
        """Await what a listener has returned, and report its error."""
        try:
            await awaitable
        except BaseException as error:
            if not self.report(event, error):
                raise

    def report(self, event: Event, error: BaseException) -> bool:
        """Report the error of a listener. Return False for one that ends the task: its cancellation, SystemExit."""
        if isinstance(error, asyncio.CancelledError) and not _is_cancelled():
            error = _inner_cancellation(error)
        if not isinstance(error, Exception):
            return False
        self._server._report_error(event, error)
        return True

    def detach(self) -> set[asyncio.Task[None]]:
        """Cancel all tasks and return them; the server runs no async listeners any more."""
        server = self._server
        if server._defer_to == self._defer:
            server._defer_to = server._requests.answer_later = None
        server._router.request_cancelled.remove(self._cancel_request)
        server._router.session_closed.remove(self._cancel_requests_of)
        if self._loop.is_closed():
            return set()
        for task in self._tasks:
            task.cancel()
        return set(self._tasks)

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._freed()

    # -- events ------------------------------------------------------------------------------------------------

    def _defer(self, event: Event, awaitable: Awaitable[Any]) -> None:
        if threading.get_ident() != self._thread:  # `Server.emit` in another thread.
            self._loop.call_soon_threadsafe(self.start, self.run, event, awaitable)
        elif self.collected is None:
            self.start(self.run, event, awaitable)
        else:
            self.collected.append((event, awaitable))

    # -- requests ----------------------------------------------------------------------------------------------

    def _answer_later(self, session: Session, request: IncomingRequest, value: Awaitable[Any]) -> None:
        task = self.start(self._answer, session, request, value)
        self._requests.setdefault(session, {})[request.id] = task

        def finish(task: asyncio.Task[None]) -> None:
            if inspect.iscoroutine(value):
                value.close()  # The task may have been cancelled before it began.
            if self._pop_request(session, request.id) and task.cancelled():
                stopped = LinkClosed("the server stopped before the listener had finished")
                self._reply(session, request, error_reply(session.codec, stopped))

        task.add_done_callback(finish)

    async def _answer(self, session: Session, request: IncomingRequest, value: Awaitable[Any]) -> None:
        _current_lane.set(None)
        report = self._server._requests.report_failure
        seconds = None if request.remaining_ms is None else request.remaining_ms / 1000
        try:
            async with asyncio.timeout(seconds) as bound:
                reply = value_reply(session.codec, await value)
        except asyncio.CancelledError as error:
            if _is_cancelled():
                raise
            report(session, request, _inner_cancellation(error))
            reply = error_reply(session.codec, error)
        except Exception as error:  # noqa: BLE001 - any error of a listener goes to the client
            if isinstance(error, TimeoutError) and bound.expired():
                reply = late_reply(session.codec)
            else:
                report(session, request, error)
                reply = error_reply(session.codec, error)
        except BaseException as error:
            self._reply(session, request, error_reply(session.codec, error))
            raise
        self._reply(session, request, reply)

    def _reply(self, session: Session, request: IncomingRequest, reply: Reply) -> None:
        with contextlib.suppress(LinkClosed):  # The server was closed while the listener ran.
            send_reply(self._server._post, session, request.id, reply)

    def _pop_request(self, session: Session, request: int) -> asyncio.Task[None] | None:
        requests = self._requests.get(session, {})
        task = requests.pop(request, None)
        if not requests:
            self._requests.pop(session, None)
        return task

    def _cancel_request(self, session: Session, request: int) -> None:
        """Cancel the listener of a request whose client no longer waits."""
        task = self._pop_request(session, request)
        if task is not None:
            task.cancel()

    def _cancel_requests_of(self, session: Session) -> None:
        """Cancel the listeners of all requests of a client that has ended."""
        for request in tuple(self._requests.get(session, ())):
            self._cancel_request(session, request)


class _Lane:
    """Received events of one session that wait for the async listeners of the first one."""

    def __init__(self, session: Session, received: Received) -> None:
        self.session = session
        self.frames = deque([received])
        self.pending: list[Pending] = []
        """What to await for the first event."""
        self.answers_requests = False
        """Whether requests are answered before the first event is handled, since its listener waits for one."""
        self.answer_requests: Callable[[], object] = lambda: None
        """Dispatches the requests that wait behind the first event. From any thread: a listener may use others."""


_current_lane: ContextVar[_Lane | None] = ContextVar("remit_lane", default=None)


def let_requests_overtake(session: bytes) -> None:
    """Let requests of a session be answered now, if the caller is a listener of an event of this session.

    The event would wait for the reply, and the request for the end of the event.
    """
    lane = _current_lane.get()
    if lane is not None and lane.session.id == session and not lane.answers_requests:
        lane.answers_requests = True
        lane.answer_requests()


class AsyncServerLoop:
    """Serves one server on the running loop. The thread only pumps; everything else runs on the loop."""

    def __init__(self, server: Server, io: ServerIO, concurrency: int) -> None:
        self.loop = asyncio.get_running_loop()
        if (other := server._loop_server) is not None:
            if not other.loop.is_closed():
                raise ReentrantTick("an event loop serves this server already: end that serve() before the next one")
            other._detach()  # That loop was closed without ending serve().
        self._server = server
        self._io = io
        self._concurrency = concurrency
        self._arrived = asyncio.Event()
        self._ended = asyncio.Event()
        self._lanes: dict[Session, _Lane] = {}
        self._stopping = self._wake_scheduled = False
        self._failure: BaseException | None = None
        """Error of the link, or SystemExit of a listener. Raised by `serve`."""
        self._thread = threading.Thread(target=self._run_thread, name="remit-aio", daemon=True)

    async def serve(self) -> None:
        """Dispatch until cancelled, stopped, or closed. Raises the error of a broken link."""
        io, server = self._io, self._server
        self._thread.start()
        self._listeners = AsyncListeners(server, self._fail, self._arrived.set)
        # The thread of the loop counts as the ticking thread: a plain client that waits there would deadlock.
        io.loop_thread, io.tick_thread, io.failure, server._loop_server = threading.get_ident(), 0, None, self
        abandoned = False
        try:
            while not (io.closed or server._stopping):
                await self._arrived.wait()
                self._arrived.clear()
                if self._failure is not None and not io.closed:
                    raise self._failure
                await self._dispatch()
        except GeneratorExit:  # The loop was closed without ending this coroutine, which must not await any more.
            abandoned = True
            raise
        finally:
            cancelled = self._detach()
            if not abandoned:
                await finish_uncancelled(self.loop.create_task(self._finish(cancelled)))

    @property
    def waiting(self) -> int:
        """Number of events that wait for the listeners of an earlier event of their client."""
        return sum(len(received.events) for lane in tuple(self._lanes.values()) for received in tuple(lane.frames))

    def _detach(self) -> set[asyncio.Task[None]]:
        """Give the server back, stop the thread, and return the cancelled tasks."""
        self._stopping = True
        if self._server._loop_server is not self:  # Detached already, by the loop that serves now.
            return set()
        self._server._stopping, self._server._loop_server, self._io.loop_thread = False, None, 0
        self._io.waker.wake()
        return self._listeners.detach()

    async def _finish(self, cancelled: set[asyncio.Task[None]]) -> None:
        if cancelled:
            await asyncio.wait(cancelled, timeout=CANCEL_TIMEOUT_S)
        await self._ended.wait()

    @property
    def _crowded(self) -> bool:
        """Whether as many async listeners run as may."""
        return len(self._listeners) >= self._concurrency

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        self._arrived.set()

    # -- the thread --------------------------------------------------------------------------------------------

    def _run_thread(self) -> None:
        try:
            while self._pump():
                self._wake_loop()
        except Exception as error:
            logger.exception("the server on %s has lost its location: open another one", self._io.location)
            self._io.failure = error
            self._call_on_loop(self._fail, error)
        finally:
            self._call_on_loop(self._arrived.set)
            self._call_on_loop(self._ended.set)

    def _wake_loop(self) -> None:
        machine = self._io.machine
        work = machine.ready or machine.closed or machine.cancelled_requests or self._server._stopping
        # If it is set, the loop has not looked at these yet.
        if work and not self._arrived.is_set():
            self._call_on_loop(self._arrived.set)

    def _call_on_loop(self, call: Callable[..., object], *args: Any) -> None:
        try:
            self.loop.call_soon_threadsafe(call, *args)
        except RuntimeError:  # The loop was closed without ending `serve`.
            self._stopping = True

    def _pump(self) -> bool:
        """Exchange frames, after a wait if the link is idle. Return False after `serve` or the server has ended."""
        io, pump = self._io, self._io.link_pump
        with pump.lock:
            # Read under the lock: close() may have closed the link while this thread waited for the lock.
            if io.closed:
                return False
            if self._stopping:
                pump.flush()  # The acknowledgements and replies of the last events.
                return False
            if pump.exchange():
                self._wake_loop()  # Before the wait: these frames may be the last ones for a while.
                pump.wait(FULL_POLL_INTERVAL_S if io.machine.writable else IDLE_WAIT_S, io.waker)
                io.waker.clear()
                pump.exchange()
            io.pumped_at = time.monotonic()
        return True

    # -- the loop ----------------------------------------------------------------------------------------------

    async def _dispatch(self) -> None:
        io, server = self._io, self._server
        frames = 0
        io.report_sessions(*self._lanes)
        while io.machine.ready and not (self._crowded or io.closed or server._stopping):
            self._begin(io.machine.ready.popleft())
            frames += 1
            if frames % FRAMES_PER_TURN == 0:
                await asyncio.sleep(0)

    def _begin(self, received: Received) -> None:
        """Dispatch the events of a frame. If a listener must be awaited, a task continues behind its event."""
        session = received.session
        lane = self._lanes.get(session)
        if lane is not None:
            lane.frames.append(received)
            if lane.answers_requests:
                self._answer_requests(lane)
            return
        lane = _Lane(session, received)
        try:
            self._advance(lane)
        except BaseException:
            self._put_back(lane)
            raise
        if not lane.pending:
            self._put_back(lane)
        else:
            lane.answer_requests = lambda: self.loop.call_soon_threadsafe(self._answer_requests, lane)
            self._lanes[session] = lane
            # In a callback, since a task that is cancelled before it begins runs no code of its own.
            self._listeners.start(self._continue, lane).add_done_callback(lambda _: self._end_lane(lane))

    def _advance(self, lane: _Lane) -> None:
        """Dispatch the first frame of a lane, up to an event whose listeners must be awaited."""
        received = lane.frames[0]
        sender, dispatch = self._io.sender_of(received.session), self._server._dispatch
        listeners, pending, redelivered = self._listeners, lane.pending, received.redelivered
        done = 0
        try:
            listeners.collected = pending
            for wire in received.events:
                if wire is None:
                    pass
                elif wire.name == REQUEST:  # Makes no lane: listeners of requests run concurrently.
                    if self._crowded:
                        break
                    listeners.collected = None
                    dispatch((wire,), sender, redelivered)
                    listeners.collected = pending
                else:
                    dispatch((wire,), sender, redelivered)
                    if pending:
                        break
                done += 1
        except BaseException:
            done += 1  # An event whose listener raised SystemExit or KeyboardInterrupt counts as handled.
            raise
        finally:
            listeners.collected = None
            self._mark_handled(lane, done)

    async def _continue(self, lane: _Lane) -> None:
        """Await the listeners of the first event of a lane, then dispatch the following events."""
        _current_lane.set(lane)
        while lane.frames:
            if not lane.pending:
                if self._crowded:
                    return
                await asyncio.sleep(0)  # Listeners that never wait must not stop the loop.
            else:
                for event, awaitable in lane.pending:
                    try:
                        await awaitable
                    except BaseException as error:
                        if not self._listeners.report(event, error):
                            # A cancelled event counts as not handled: the next serve() starts with it.
                            if not isinstance(error, asyncio.CancelledError):
                                self._mark_handled(lane, 1)
                            raise
                lane.pending.clear()
                self._mark_handled(lane, 1)
            if lane.frames:
                self._advance(lane)

    def _end_lane(self, lane: _Lane) -> None:
        for _, awaitable in lane.pending:
            if inspect.iscoroutine(awaitable):
                awaitable.close()  # The task may have been cancelled before it began.
        del self._lanes[lane.session]
        self._put_back(lane)

    def _mark_handled(self, lane: _Lane, done: int) -> None:
        """Mark the first events of a lane as handled."""
        received = lane.frames[0]
        received.mark_handled(done)
        if not received.events:
            lane.frames.popleft()
        self._io.machine.writable[lane.session] = None
        if not self._wake_scheduled:  # Once for all events that are handled before the loop turns to other tasks.
            self._wake_scheduled = True
            self.loop.call_soon(self._wake_pump)

    def _wake_pump(self) -> None:
        self._wake_scheduled = False
        self._io.waker.wake()

    def _put_back(self, lane: _Lane) -> None:
        """Leave the events that are not handled to the next dispatch, in their order."""
        self._io.machine.ready.extendleft(reversed(lane.frames))
        lane.frames.clear()

    def _answer_requests(self, lane: _Lane) -> None:
        """Dispatch the requests of a lane before its events."""
        for received in lane.frames:
            for place, wire in enumerate(received.events):
                if wire is not None and wire.name == REQUEST:
                    received.events[place] = None
                    self._server._dispatch((wire,), self._io.sender_of(received.session), received.redelivered)


def _inner_cancellation(error: asyncio.CancelledError) -> CancelledError:
    """Return an Exception to report for a listener whose own task was not cancelled."""
    reported = CancelledError("what the listener awaited was cancelled")
    reported.__cause__ = error
    return reported


def _is_cancelled() -> bool:
    """Return True if the running task itself is cancelled, and not only an awaitable of its listener."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
