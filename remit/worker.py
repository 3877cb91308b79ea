"""A worker that runs the jobs of a broker, in one thread or in several."""

from __future__ import annotations

import contextlib
import inspect
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
from remit._patterns.request_reply import decode_nested, error_reply, value_reply
from remit.client import Client
from remit.codec import find_codec
from remit.errors import FrameTooLarge, NoListener, RemitError
from remit.listeners import check_listener, converter, matcher
from remit.location import Location
from remit.options import check_count, check_seconds

if TYPE_CHECKING:
    import asyncio

__all__ = ["CurrentJob", "Worker", "current_job"]

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
        self._stopping = threading.Event()
        self._interrupted: list[tuple[Job, tuple[str, bytes]]] = []
        """Jobs whose handlers were interrupted, as by KeyboardInterrupt; the next `run` reports them as failed."""

    def on(self, name: str) -> Callable[[Handler], Handler]:
        """Return a decorator that registers a handler, which may be async, for jobs of this name or pattern."""

        def add(handler: Handler) -> Handler:
            self.add_handler(name, handler)
            return handler

        return add

    def add_handler(self, name: str, handler: Callable[..., Any]) -> None:
        """Call ``handler(*args, **kwargs)`` for jobs of this name or pattern; the first one that matches is used."""
        check_listener(name, handler)
        self._handlers[name] = matcher(name), converter(handler)

    def run(self, timeout: float | None = None) -> None:
        """Register with the broker and run jobs until `stop` is called or ``timeout`` seconds have passed.

        Jobs that have started are finished; the broker requeues the others. Raises what `Client.request` raises if no
        broker answers, and NoListener if the server is not a broker.
        """
        if not self._handlers:
            raise ValueError("a worker without a handler has nothing to do: add one with worker.on(name)")
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        self._discard_unstarted()
        while self._interrupted:
            job, reply = self._interrupted.pop()
            self.client.emit(JOB_DONE, job.token, *reply)
        try:
            self._jobs.lease_s = lease = self._register()
            self.client._set_heartbeat(lease / HEARTBEATS_PER_LEASE)
            try:
                self._run_jobs_in_threads(deadline)
            finally:
                # If the broker cannot be reached, the lease expires instead.
                with contextlib.suppress(RemitError):
                    self.client.request(WORKER_LEAVE, timeout=LEAVE_TIMEOUT_S)
                self._discard_unstarted()  # The broker assigns nothing after its reply.
        finally:
            self._stopping.clear()

    def stop(self) -> None:
        """Make `run` return once its running jobs have ended; if it has not been called yet, the next call returns.

        Safe from any thread and from a signal handler.
        """
        self._stopping.set()
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

    # -- jobs --------------------------------------------------------------------------------------------------

    def _run_jobs_in_threads(self, deadline: float) -> None:
        if self._threads == 1:
            self._run_jobs(deadline)
            return
        with ThreadPoolExecutor(self._threads, thread_name_prefix="remit-worker") as pool:
            for future in [pool.submit(self._run_jobs, deadline) for _ in range(self._threads)]:
                future.result()

    def _run_jobs(self, deadline: float) -> None:
        """Run one job after the other, in this thread."""
        import asyncio  # Imported late, so that `import remit` stays fast.

        runner = asyncio.Runner()  # Creates its loop for the first async handler.
        try:
            while not self._stopping.is_set() and (left := deadline - time.monotonic()) > 0:
                job = self._jobs.wait_for_job(min(left, IDLE_WAIT_S))
                if job is not None:
                    self._run_job(job, runner)
        finally:
            runner.close()

    def _run_job(self, job: Job, runner: asyncio.Runner) -> None:
        self.client.emit(JOB_STARTED, job.token)
        codec = find_codec(job.codec)
        try:
            call = decode_nested(codec, job.body)
            deadline = None if job.remaining_ms is None else time.monotonic() + job.remaining_ms / 1000

            def progress(done: Any, total: Any) -> None:
                self.client.emit(JOB_PROGRESS, job.token, done, total)

            token = _current.set(CurrentJob(call.name, job.attempt, deadline, progress))
            try:
                value = self._handler(call.name)(*call.args, **call.kwargs)
                if inspect.iscoroutine(value):
                    value = runner.run(value)
            finally:
                _current.reset(token)
            reply = value_reply(codec, value)
        except Exception as error:  # noqa: BLE001 - any error of a handler is the reply
            reply = error_reply(codec, error)
        except BaseException as error:
            # Not reported yet: if this process ends, the broker requeues the job, as after any other death. If `run`
            # is called again instead, the job must not stay assigned, and is reported then.
            self._interrupted.append((job, error_reply(codec, error)))
            raise
        try:
            self.client.emit(JOB_DONE, job.token, *reply)
        except FrameTooLarge as error:
            self.client.emit(JOB_DONE, job.token, *error_reply(codec, error))

    def _handler(self, name: str) -> Callable[..., Any]:
        for matches, handler in self._handlers.values():
            if matches(name):
                return handler
        raise LookupError(f"this worker has no handler for {name!r}")

    def _register(self) -> float:
        """Announce the worker and return its lease. Raises NoListener, and what `Client.request` raises."""
        try:
            lease = self._jobs.announce().result()
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
        if self._stopping.is_set():
            self._jobs.interrupt_waits()
