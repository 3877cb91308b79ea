"""Worker: takes jobs from a broker, one after the other or several at once, and lives up to its lease."""

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
from remit._patterns.names import JOB, SERVER_RESTARTED, WORKER_LEAVE, WORKER_UNKNOWN
from remit._patterns.request_reply import decode_nested, error_reply, value_reply
from remit.client import Client
from remit.codec import find_codec
from remit.errors import FrameTooLarge, NoListener, RemitError
from remit.listeners import check_listener, converter, matcher
from remit.location import Location
from remit.options import check_count, check_seconds

if TYPE_CHECKING:
    import asyncio
    from types import TracebackType

__all__ = ["CurrentJob", "Worker", "current_job"]

IDLE: Final = 60.0
"""Seconds that an idle worker waits at a time; a job, or `Worker.stop`, ends it."""
BEATS: Final = 4
"""How often within its lease a worker lets the broker hear of it."""
FAREWELL: Final = 5.0
"""Seconds that a worker that leaves waits for its broker to know."""
Handler = TypeVar("Handler", bound=Callable[..., Any])


class CurrentJob(NamedTuple):
    """The job that runs in this thread or task."""

    name: str
    attempt: int
    """Which try this is: above 1 a worker before this one has died of it."""
    deadline: float | None
    """The monotonic moment after which nobody waits for the answer; None: never."""
    progress: Callable[[Any, Any], None]
    """Tell whoever asked how far it is: ``progress(done, total)``."""


_current: ContextVar[CurrentJob] = ContextVar("current_job")


def current_job() -> CurrentJob:
    """Return the job whose handler runs here. Raises LookupError outside one."""
    return _current.get()


class Worker:
    """Runs handlers for the jobs that a broker gives it.

    ``capacity`` is how many jobs it holds at once, ``threads`` how many of them run at once: with one they run in the
    thread that calls `run`. A capacity above the threads keeps short jobs from waiting for the broker; for long ones it
    keeps them from other workers. ``location`` is the broker's. Raises what `Client` raises.
    """

    def __init__(
        self, location: str | Location | None = None, *, capacity: int | None = None, threads: int = 1, **options: Any
    ) -> None:
        check_count("threads", threads)
        if capacity is not None:
            check_count("capacity", capacity)
            if capacity < threads:
                raise ValueError(f"a worker has a capacity for each of its threads: {threads=}, {capacity=}")
        self.client = Client(location, **options)
        self._jobs = WorkerJobs(self.client, lambda: list(self._handlers), threads if capacity is None else capacity)
        self.client._router.register_io(JOB, self._jobs.on_job)
        self.client._router.register(SERVER_RESTARTED, lambda *_: self._jobs.on_lease_lost())
        self.client._router.register(WORKER_UNKNOWN, lambda *_: self._jobs.on_lease_lost())
        self._threads = threads
        self._handlers: dict[str, tuple[Callable[[str], object], Callable[..., Any]]] = {}
        self._stopping = threading.Event()
        self._interrupted: list[tuple[Job, tuple[str, bytes]]] = []
        """Jobs whose handlers raised what is no Exception: another worker gets them, unless this one goes on."""

    def on(self, name: str) -> Callable[[Handler], Handler]:
        """Decorate the handler of jobs of this name, or whose name fits this pattern. It may be async."""

        def add(handler: Handler) -> Handler:
            self.add_handler(name, handler)
            return handler

        return add

    def add_handler(self, name: str, handler: Callable[..., Any]) -> None:
        """Run ``handler(*args, **kwargs)`` for jobs of this name, or whose name fits this pattern.

        What it returns or raises is the answer. The first that fits is taken.
        """
        check_listener(name, handler)
        self._handlers[name] = matcher(name), converter(handler)

    def run(self, timeout: float | None = None) -> None:
        """Announce what it takes, then run jobs until `stop` is called or ``timeout`` seconds have passed.

        Jobs that have begun are finished; others go back to the broker. Raises what `Client.request` raises when no
        broker answers, and NoListener where there is a server which is none.
        """
        if not self._handlers:
            raise ValueError("a worker without a handler has nothing to do: add one with worker.on(name)")
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        self._purge()
        while self._interrupted:
            self._jobs.report_done(*self._interrupted.pop())
        try:
            self._jobs.lease_s = lease = self._announced()
            self.client._set_heartbeat(lease / BEATS)
            try:
                self._serve_by_all(deadline)
            finally:
                self._leave()
        finally:
            self._stopping.clear()

    def stop(self) -> None:
        """Make `run` return once the jobs that run have ended, or the next one if none has begun yet.

        Safe from any thread, and from a signal's handler.
        """
        self._stopping.set()
        self._jobs.interrupt_waits()

    def close(self) -> None:
        """End the connection. May be called twice. Raises Undelivered."""
        self.stop()
        self.client.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self.client.__exit__(kind, error, trace)

    # -- jobs --------------------------------------------------------------------------------------------------

    def _serve_by_all(self, deadline: float) -> None:
        if self._threads == 1:
            self._serve(deadline)
            return
        with ThreadPoolExecutor(self._threads, thread_name_prefix="remit-worker") as pool:
            for future in [pool.submit(self._serve, deadline) for _ in range(self._threads)]:
                future.result()

    def _serve(self, deadline: float) -> None:
        """Run one job after the other."""
        import asyncio  # too slow for everybody who imports us

        runner = asyncio.Runner()  # makes its loop when it is first used
        try:
            while not self._stopping.is_set() and (left := deadline - time.monotonic()) > 0:
                job = self._jobs.wait_for_job(min(left, IDLE))
                if job is not None:
                    self._run(job, runner)
        finally:
            runner.close()

    def _run(self, job: Job, runner: asyncio.Runner) -> None:
        working = self._jobs
        working.report_started(job)
        codec = find_codec(job.codec)
        try:
            wire = decode_nested(codec, job.body)
            deadline = None if job.remaining_ms is None else time.monotonic() + job.remaining_ms / 1000
            token = _current.set(
                CurrentJob(
                    wire.name, job.attempt, deadline, lambda done, total: working.report_progress(job, done, total)
                )
            )
            try:
                value = self._handler(wire.name)(*wire.args, **wire.kwargs)
                if inspect.iscoroutine(value):
                    value = runner.run(value)
            finally:
                _current.reset(token)
            outcome = value_reply(codec, value)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises, whoever asked has to know
            outcome = error_reply(codec, error)
        except BaseException as error:
            self._interrupted.append((job, error_reply(codec, error)))
            raise
        try:
            working.report_done(job, outcome)
        except FrameTooLarge as error:
            working.report_done(job, error_reply(codec, error))

    def _handler(self, name: str) -> Callable[..., Any]:
        for matches, handler in self._handlers.values():
            if matches(name):
                return handler
        raise LookupError(f"this worker has no handler for {name!r}")

    def _announced(self) -> float:
        """Announce ourselves, and return the lease. Raises NoListener and as `Client.request`."""
        what = f"the server on {self.client.location} is no broker: start one with Broker(...) or `remit broker`"
        try:
            lease = self._jobs.announce().result()
        except NoListener as error:
            raise NoListener(what) from error
        try:
            check_seconds("the lease of a broker", lease)
        except (TypeError, ValueError) as error:
            raise NoListener(what) from error
        return float(lease)

    def _leave(self) -> None:
        """Take no more; what is held and has not begun goes back."""
        # Without a broker there is nobody to be told.
        with contextlib.suppress(RemitError):
            self.client.request(WORKER_LEAVE, timeout=FAREWELL)
        self._purge()  # Nothing comes after the answer.

    def _purge(self) -> None:
        self._jobs.discard_unstarted()
        if self._stopping.is_set():
            self._jobs.interrupt_waits()
