"""A worker that runs the jobs of a broker, in one thread or in several."""

from __future__ import annotations

import contextlib
import inspect
import logging
import queue
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from remit._patterns.jobs import Job, WorkerJobs
from remit._patterns.names import (
    JOB,
    JOB_DONE,
    JOB_PROGRESS,
    JOB_STARTED,
    SERVER_RESTARTED,
    WORKER_LEAVE,
    WORKER_UNKNOWN,
)
from remit._patterns.request_reply import Reply, error_reply, shorter_reply, value_reply
from remit._typed_listeners import bind, conversion
from remit.client import Client
from remit.codec import Codec, EventMessage, decode_event, find_codec
from remit.errors import FrameTooLarge, NoListener, RemitError
from remit.listeners import check_listener, matcher
from remit.location import Location
from remit.options import check_count, check_seconds
from remit.transport import next_item

if TYPE_CHECKING:
    import asyncio

__all__ = ["CurrentJob", "Worker", "current_job"]

logger = logging.getLogger("remit")

IDLE_WAIT_S: Final = 60.0
"""Longest wait of an idle worker; a job or `Worker.stop` ends it earlier."""
HEARTBEATS_PER_LEASE: Final = 4
LEAVE_TIMEOUT_S: Final = 5.0
"""Timeout of the request by which a worker leaves its broker."""
Handler = TypeVar("Handler", bound=Callable[..., Any])


class CurrentJob(NamedTuple):
    """The job whose handler runs in this thread or asyncio task."""

    name: str
    attempt: int
    """Number of this attempt. Above 1, an earlier worker has died while it ran the job."""
    deadline: float | None
    """Monotonic time after which the client no longer waits; None without a deadline."""
    progress: Callable[[Any, Any], None]
    """Reports progress to the client: ``progress(done, total)``."""


_current: ContextVar[CurrentJob] = ContextVar("current_job")


def current_job() -> CurrentJob:
    """Return the job whose handler runs here. Raises LookupError outside one."""
    return _current.get()


class Worker:
    """Runs handlers for the jobs of the broker at ``location``.

    ``threads`` is the number of jobs that run in parallel; a single one runs in the caller of `run`. ``capacity``
    is the number of jobs that the worker holds, by default as many as threads. A higher one saves round trips between
    short jobs, but holds long jobs back from other workers. Raises what `Client` raises.
    """

    def __init__(
        self, location: str | Location | None = None, *, capacity: int | None = None, threads: int = 1, **options: Any
    ) -> None:
        check_count("threads", threads)
        if capacity is not None:
            check_count("capacity", capacity)
            if capacity < threads:
                raise ValueError(f"capacity must be at least threads: {capacity=}, {threads=}")
        self.client = Client(location, **options)
        self._jobs = WorkerJobs(self.client, lambda: list(self._handlers), threads if capacity is None else capacity)
        self.client._router.io_handlers[JOB] = self._jobs.on_job
        for name in (SERVER_RESTARTED, WORKER_UNKNOWN):
            self.client._router.register(name, lambda *_: self._jobs.on_lease_lost())
        self._threads = threads
        self._handlers: dict[str, tuple[Callable[[str], object], Callable[..., Any]]] = {}
        self._stopping = False
        self._running: dict[int, threading.Thread] = {}
        """Tokens of the jobs that have started, with the threads that run them."""

    def on(self, name: str, *, pass_event: bool = False) -> Callable[[Handler], Handler]:
        """Return a decorator that registers a handler, which may be async, for jobs of this name or pattern."""

        def add(handler: Handler) -> Handler:
            self.add_handler(name, handler, pass_event=pass_event)
            return handler

        return add

    def add_handler(self, name: str, handler: Callable[..., Any], *, pass_event: bool = False) -> None:
        """Call ``handler(*args, **kwargs)`` for jobs of this name or pattern; the first one that matches is used.

        With ``pass_event`` the only argument is the `Event` of the request, with its headers. Raises ValueError if the
        name has a handler already.
        """
        check_listener(name, handler)
        how = None if pass_event else conversion(handler)

        def call_handler(call: EventMessage) -> Any:
            return handler(call.event()) if pass_event else bind(handler, how, call)()

        entry = matcher(name), call_handler
        if self._handlers.setdefault(name, entry) is not entry:
            raise ValueError(f"this worker has a handler for {name!r} already; a job is run by one handler")

    def run(self, timeout: float | None = None) -> None:
        """Register with the broker and run jobs until `stop` is called or ``timeout`` seconds have passed.

        Jobs that have started are finished; the broker requeues the others. An exception of a handler is the reply to
        its job. SystemExit or KeyboardInterrupt, in the main thread and with one thread, ends `run`, and the job goes
        to another worker. Raises what `Client.request` raises if no broker answers, and NoListener if the server is
        not a broker.
        """
        if not self._handlers:
            raise ValueError("a worker without a handler has nothing to do: add one with worker.on(name)")
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        why = ""
        try:
            try:
                self._discard_unstarted()
                self._jobs.lease_s = lease = self._register()
                self.client._set_heartbeat(lease / HEARTBEATS_PER_LEASE)
                self._run_jobs_in_threads(deadline)
            except BaseException as error:
                why = f"was interrupted by {type(error).__name__}"
                raise
            finally:
                # If the broker cannot be reached, the lease expires instead.
                with contextlib.suppress(RemitError):
                    self.client.request(WORKER_LEAVE, self._running_tokens(), why, timeout=LEAVE_TIMEOUT_S)
                self._discard_unstarted()  # The broker assigns nothing after its reply.
                self._stopping = False
        except BaseException:
            # The request above may have been interrupted. Without it the broker would go on assigning jobs.
            self._jobs.release_lock()
            self._stopping = False
            with contextlib.suppress(RemitError):
                self.client.submit(WORKER_LEAVE, self._running_tokens(), why)
            raise

    def stop(self) -> None:
        """Make `run` return once its running jobs have ended; if it has not been called yet, the next call returns.

        Safe from any thread and from a signal handler.
        """
        self._stopping = True
        self._jobs.interrupt_waits()

    def close(self) -> None:
        """Stop, and close the client. May be called twice. Raises Undelivered."""
        self.stop()
        self.client.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *raised: Any) -> None:
        self.stop()
        self.client.__exit__(*raised)

    def _run_jobs_in_threads(self, deadline: float) -> None:
        if self._threads == 1:
            self._run_jobs(deadline, threading.Event())
            return
        # Daemon threads: a process that ends does not wait for its jobs, which the broker gives to other workers.
        over = threading.Event()
        ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        for number in range(self._threads):
            name = f"remit-worker_{number}"
            threading.Thread(target=self._run_thread, args=(deadline, over, ended), name=name, daemon=True).start()
        error, left = None, self._threads
        try:
            while left:
                if (seconds := deadline - time.monotonic()) <= 0:
                    self._jobs.interrupt_waits()
                with contextlib.suppress(queue.Empty):
                    error = next_item(ended, min(seconds, IDLE_WAIT_S) if seconds > 0 else IDLE_WAIT_S) or error
                    left -= 1
        finally:
            # After an interrupt of this thread the others finish their jobs and end.
            over.set()
            self._jobs.interrupt_waits()
        if error is not None:
            raise error

    def _run_thread(
        self, deadline: float, over: threading.Event, ended: queue.SimpleQueue[BaseException | None]
    ) -> None:
        try:
            self._run_jobs(deadline, over)
        except BaseException as error:
            self.stop()
            ended.put(error)
            logger.exception("a thread of a worker has failed; the others finish their jobs, and run() ends")
        else:
            ended.put(None)

    def _run_jobs(self, deadline: float, over: threading.Event) -> None:
        """Run one job after the other, in this thread, until ``over`` is set or the worker stops."""
        import asyncio  # Imported late, so that `import remit` stays fast.

        runner = asyncio.Runner()  # Creates its loop for the first async handler.
        try:
            while not self._stopping and not over.is_set() and (left := deadline - time.monotonic()) > 0:
                job = self._jobs.wait_for_job(min(left, IDLE_WAIT_S))
                if job is not None:
                    self._run_job(job, runner)
        finally:
            runner.close()

    def _run_job(self, job: Job, runner: asyncio.Runner) -> None:
        import asyncio

        self._running[job.token] = threading.current_thread()
        self.client.emit(JOB_STARTED, job.token)
        codec = find_codec(job.codec)
        name = ""
        try:
            call = decode_event(codec, job.body)
            name = call.name
            deadline = None if job.remaining_ms is None else time.monotonic() + job.remaining_ms / 1000

            def progress(done: Any, total: Any) -> None:
                self.client.emit(JOB_PROGRESS, job.token, done, total)

            token = _current.set(CurrentJob(name, job.attempt, deadline, progress))
            try:
                value = self._handler(name)(call)
                if inspect.iscoroutine(value):
                    value = runner.run(value)
            finally:
                _current.reset(token)
            reply = value_reply(codec, value)
        except BaseException as error:
            # SystemExit, KeyboardInterrupt and others may come from a signal handler, in the main thread.
            failure = isinstance(error, (Exception, GeneratorExit, asyncio.CancelledError))
            if not failure and threading.current_thread() is threading.main_thread():
                # The program probably ends, and another worker runs the job.
                logger.warning("a handler of %r was interrupted; the broker requeues its job", name, exc_info=error)
                raise
            logger.error("a handler of %r raised", name, exc_info=error)
            reply = error_reply(codec, error)
            if not failure and self._threads == 1:
                self._emit_reply(job, codec, reply)
                raise
        self._emit_reply(job, codec, reply)

    def _emit_reply(self, job: Job, codec: Codec, reply: Reply) -> None:
        try:
            self.client.emit(JOB_DONE, job.token, *reply)
        except FrameTooLarge as error:
            self.client.emit(JOB_DONE, job.token, *shorter_reply(codec, reply, error))
        self._running.pop(job.token, None)

    def _running_tokens(self) -> list[int]:
        """Return the tokens of the jobs that other threads run. This thread runs none any more: it was interrupted."""
        here = threading.current_thread()
        running = {token: thread for token, thread in self._running.copy().items() if thread.is_alive()}
        self._running = {token: thread for token, thread in running.items() if thread is not here}
        return list(self._running)

    def _handler(self, name: str) -> Callable[..., Any]:
        for matches, handler in self._handlers.values():
            if matches(name):
                return handler
        raise LookupError(f"this worker has no handler for {name!r}")

    def _register(self) -> float:
        """Announce the worker and return its lease. Raises NoListener, and what `Client.request` raises."""
        try:
            lease = self._jobs.announce(running=self._running_tokens()).result()
            check_seconds("the lease of a broker", lease)
        except (NoListener, TypeError, ValueError) as error:
            where = self.client.location
            raise NoListener(
                f"the server on {where} is not a broker: start one with Broker(...) or `remit broker`"
            ) from error
        return float(lease)

    def _discard_unstarted(self) -> None:
        # Discarding also removes the interrupt of a `stop` that was called in between: it is repeated.
        self._jobs.discard_unstarted()
        if self._stopping:
            self._jobs.interrupt_waits()
