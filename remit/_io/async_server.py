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
from itertools import repeat, starmap
from operator import length_hint
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from remit._io.loop_threads import finish_uncancelled
from remit._io.server_io import FULL_POLL_INTERVAL_S, ServerIO
from remit._patterns.names import REQUEST
from remit._patterns.request_reply import IncomingRequest, Reply, error_reply, make_reply, send_reply, value_reply
from remit._protocol.session import Received, Session
from remit.errors import LinkClosed, ReentrantTick
from remit.event import Event

if TYPE_CHECKING:
    from remit.server import Server

logger = logging.getLogger("remit")

IDLE_WAIT_S: Final = 60.0
"""Upper bound of one wait on an idle link; frames and the waker end it."""
REPAIR_INTERVAL_S: Final = 1.0
"""Seconds after which the work of an interrupted callback is done."""
FRAMES_PER_TURN: Final = 64
"""Frames dispatched in a row before other tasks of the loop run."""
CANCEL_TIMEOUT_S: Final = 1.0
"""Seconds that the end of `AsyncServerLoop.serve` waits for listeners to handle their cancellation."""

AtEnd: TypeAlias = Callable[[asyncio.Task[None]], object]
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
        self._tasks: dict[asyncio.Task[None], AtEnd] = {}
        self._requests: dict[Session, dict[int, asyncio.Task[None]]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def attach(self) -> None:
        """Run the async listeners of the server from now on."""
        server = self._server
        server._defer_to, server._requests.answer_later = self._defer, self._answer_later
        server._router.request_cancelled.append(self._cancel_request)
        server._router.session_closed.append(self._cancel_requests_of)

    def start(self, at_end: AtEnd, function: Callable[..., Any], *args: Any) -> asyncio.Task[None]:
        """Start ``function(*args)`` as a task, which counts until it ends. ``at_end`` may be called twice."""
        task = self._loop.create_task(self._guard(function, *args))
        self._tasks[task] = at_end
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
        with contextlib.suppress(ValueError):  # Detached already.
            server._router.request_cancelled.remove(self._cancel_request)
        with contextlib.suppress(ValueError):
            server._router.session_closed.remove(self._cancel_requests_of)
        if self._loop.is_closed():
            return set()
        for task in self._tasks:
            task.cancel()
        return set(self._tasks)

    def finish_ended(self) -> None:
        """Repeat what an interrupted callback of an ended task has not done."""
        for task in [task for task in self._tasks if task.done()]:
            self._finish(task)

    def _finish(self, task: asyncio.Task[None]) -> None:
        at_end = self._tasks.get(task)
        if at_end is not None:
            at_end(task)
            self._tasks.pop(task, None)
            self._freed()

    # -- events ------------------------------------------------------------------------------------------------

    def _defer(self, event: Event, awaitable: Awaitable[Any]) -> None:
        if threading.get_ident() != self._thread:  # `Server.emit` in another thread.
            self._loop.call_soon_threadsafe(self.start, bool, self.run, event, awaitable)
        elif self.collected is None:
            self.start(bool, self.run, event, awaitable)
        else:
            self.collected.append((event, awaitable))

    # -- requests ----------------------------------------------------------------------------------------------

    def _answer_later(self, session: Session, request: IncomingRequest, value: Awaitable[Any]) -> None:
        def finish(task: asyncio.Task[None]) -> None:
            if inspect.iscoroutine(value):
                value.close()  # The task may have been cancelled before it began.
            if task.cancelled() and request.id in self._requests.get(session, ()):
                stopped = LinkClosed("the server stopped before the listener had finished")
                self._reply(session, request, error_reply(session.codec, stopped))
            self._pop_request(session, request.id)

        task = self.start(finish, self._answer, session, request, value)
        self._requests.setdefault(session, {})[request.id] = task

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
                reply = make_reply(session.codec, "late")
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

    def __init__(self, session: Session) -> None:
        self.session = session
        self.frames: deque[Received] = deque()
        self.task: asyncio.Task[None] | None = None
        """Awaits the listeners; None until there are some."""
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
            other.release()
        self._server = server
        self._io = io
        self._concurrency = concurrency
        self._arrived = asyncio.Event()
        self._ended = asyncio.Event()
        self._lanes: dict[Session, _Lane] = {}
        self._stopping = self._wake_scheduled = False
        self._repair_at = time.monotonic() + REPAIR_INTERVAL_S
        self._failure: BaseException | None = None
        """Error of the link, or SystemExit of a listener. Raised by `serve`."""
        self._listeners = AsyncListeners(server, self._fail, self._arrived.set)
        self._thread = threading.Thread(target=self._run_thread, name="remit-aio", daemon=True)

    async def serve(self) -> None:
        """Dispatch until cancelled, stopped, or closed. Raises the error of a broken link."""
        io, server = self._io, self._server
        abandoned = False
        try:
            # The thread of the loop counts as the ticking thread: a plain client that waits there would deadlock.
            io.loop_thread, io.tick_thread, io.failure, server._loop_server = threading.get_ident(), 0, None, self
            self._thread.start()
            self._listeners.attach()
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
            cancelled = self.detach()
            if not abandoned:
                await finish_uncancelled(self.loop.create_task(self._finish(cancelled)))

    @property
    def waiting(self) -> int:
        """Number of events that wait for the listeners of an earlier event of their client."""
        return sum(len(received.events) for lane in tuple(self._lanes.values()) for received in tuple(lane.frames))

    def release(self) -> None:
        """Give the server back if `serve` has ended in any way: interrupted, or with its loop. Raises ReentrantTick."""
        elsewhere = self.loop.is_running() and self._io.loop_thread != threading.get_ident()
        if elsewhere or not (self._stopping or self.loop.is_closed()):
            raise ReentrantTick("an event loop serves this server and dispatches its events: end its serve() first")
        self.detach()
        self._repair()
        self._give_back()

    def detach(self) -> set[asyncio.Task[None]]:
        """Stop the thread, and return the cancelled tasks. Give the server back, unless events wait for them."""
        self._stopping = True
        self._io.waker.wake()
        cancelled = self._listeners.detach()
        if not self._lanes:
            self._give_back()
        return cancelled

    def _give_back(self) -> None:
        if self._server._loop_server is self:  # Otherwise another loop serves it now.
            self._server._stopping, self._server._loop_server = False, None
            self._io.tick_thread, self._io.loop_thread = self._io.loop_thread, 0

    def _repair(self) -> None:
        """Do what an interrupted callback of the loop has left undone. The thread calls it about once a second."""
        self._wake_pump()
        self._listeners.finish_ended()
        for lane in tuple(self._lanes.values()):
            if lane.task is None or lane.task.done() or self.loop.is_closed():
                self._end_lane(lane)

    async def _finish(self, cancelled: set[asyncio.Task[None]]) -> None:
        if cancelled:
            await asyncio.wait(cancelled, timeout=CANCEL_TIMEOUT_S)
        if self._thread.ident is not None:
            await self._ended.wait()
        self._repair()
        self._give_back()

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
                busy = bool(self._lanes or self._listeners or self._wake_scheduled)
                idle = REPAIR_INTERVAL_S if busy else IDLE_WAIT_S
                pump.wait(FULL_POLL_INTERVAL_S if io.machine.writable else idle, io.waker)
                io.waker.clear()
                pump.exchange()
                if busy and time.monotonic() >= self._repair_at:
                    self._repair_at = time.monotonic() + REPAIR_INTERVAL_S
                    self._call_on_loop(self._repair)
            io.pumped_at = time.monotonic()
        return True

    # -- the loop ----------------------------------------------------------------------------------------------

    async def _dispatch(self) -> None:
        io, server = self._io, self._server
        frames = 0
        io.report_sessions(*self._lanes)
        ready = io.machine.ready
        while ready and not (self._crowded or io.closed or server._stopping):
            self._begin(ready[0].session, ready)
            frames += 1
            if frames % FRAMES_PER_TURN == 0:
                await asyncio.sleep(0)

    def _begin(self, session: Session, ready: deque[Received]) -> None:
        """Dispatch the events of a frame. If a listener must be awaited, a task continues behind its event."""
        lane = self._lanes.get(session)
        waits = lane is not None
        if lane is None:
            lane = self._lanes[session] = _Lane(session)
        # In one call of C: an interrupt between popleft() and append() would lose the events.
        lane.frames.extend(starmap(ready.popleft, ((),)))
        if waits:
            if lane.answers_requests:
                self._answer_requests(lane)
            return
        self._advance(lane)
        if not lane.pending:
            self._end_lane(lane)
        else:
            lane.answer_requests = lambda: self.loop.call_soon_threadsafe(self._answer_requests, lane)
            # In a callback, since a task that is cancelled before it begins runs no code of its own.
            lane.task = self._listeners.start(lambda _: self._end_lane(lane), self._continue, lane)

    def _advance(self, lane: _Lane) -> None:
        """Dispatch the first frame of a lane, up to an event whose listeners must be awaited."""
        received = lane.frames[0]
        listeners, server, redelivered = self._listeners, self._server, received.redelivered
        sender = self._io.sender_of(received.session)
        pending = received.pending = iter(tuple(received.events))
        try:
            for wire in tuple(received.events):
                is_request = wire is not None and wire.name == REQUEST
                if is_request and self._crowded:
                    break
                # A request makes no lane: its listeners run concurrently.
                listeners.collected = None if is_request else lane.pending
                server._dispatched += wire is not None
                server._dispatch_pending([wire], pending, sender, redelivered)
                if lane.pending:
                    break
        finally:
            listeners.collected = None
            self._mark_begun(lane, unfinished=bool(lane.pending))

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
                            raise
                self._mark_begun(lane, unfinished=False)
                lane.pending.clear()
            if lane.frames:
                self._advance(lane)

    def _end_lane(self, lane: _Lane) -> None:
        """Leave the events that are not handled to the next dispatch, in their order. May be repeated."""
        if lane.frames:
            # An event whose listener was interrupted counts as handled, one whose listener was cancelled does not.
            states = [inspect.iscoroutine(each) and inspect.getcoroutinestate(each) for _, each in lane.pending]
            unstarted = states.count(inspect.CORO_CREATED) == len(states)
            cancelled = lane.task is None or not lane.task.done() or lane.task.cancelled()
            self._mark_begun(lane, unfinished=bool(lane.pending) and (cancelled or unstarted))
        for _, awaitable in lane.pending:
            if inspect.iscoroutine(awaitable):
                awaitable.close()  # The task may have been cancelled before it began.
        # In one call of C, as in `_begin`.
        self._io.machine.ready.extendleft(starmap(lane.frames.pop, repeat((), len(lane.frames))))
        if self._lanes.get(lane.session) is lane:
            del self._lanes[lane.session]
        if self._stopping and not self._lanes:
            self._give_back()

    def _mark_begun(self, lane: _Lane, *, unfinished: bool) -> None:
        """Mark the dispatched events as handled, except for the last one if it is ``unfinished``. May be repeated."""
        lane.frames[0].mark_begun(unfinished=unfinished)
        if not lane.frames[0].events:
            lane.frames.popleft()
        self._io.machine.writable[lane.session] = None
        if not self._wake_scheduled:  # Once for all events that are handled before the loop turns to other tasks.
            self._wake_scheduled = True
            self.loop.call_soon(self._wake_pump)

    def _wake_pump(self) -> None:
        self._wake_scheduled = False
        self._io.waker.wake()

    def _answer_requests(self, lane: _Lane) -> None:
        """Dispatch the requests of a lane before its events."""
        for received in lane.frames:
            for place, wire in enumerate(received.events):
                if wire is not None and wire.name == REQUEST:
                    pending = iter((wire,))
                    try:
                        received.events[place] = None
                        self._server._dispatched += 1
                        sender = self._io.sender_of(received.session)
                        self._server._dispatch_pending([wire], pending, sender, received.redelivered)
                    except BaseException:
                        if length_hint(pending):  # No listener has begun.
                            received.events[place] = wire
                        raise


def _inner_cancellation(error: asyncio.CancelledError) -> CancelledError:
    """Return an Exception to report for a listener whose own task was not cancelled."""
    reported = CancelledError("what the listener awaited was cancelled")
    reported.__cause__ = error
    return reported


def _is_cancelled() -> bool:
    """Return True if the running task itself is cancelled, and not only an awaitable of its listener."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
