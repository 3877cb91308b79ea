"""Working: a worker's side of jobs: it announces itself, holds what it is given, and says what became of it."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

import msgspec

from remit.codec import Wire, find_codec
from remit.patterns.brokering import BEGUN, DONE, PROGRESSED, READY

__all__ = ["Job", "Speaker", "Working"]


class Job(msgspec.Struct, array_like=True, frozen=True):
    """A job as a worker gets it."""

    token: int
    attempt: int
    left: int | None
    """Milliseconds until nobody waits for the answer; None: for ever."""
    codec: str
    sealed: bytes
    term: int = 0
    """To which announcement of the worker it was given."""


class Speaker(Protocol):
    """The client by which a worker speaks to its broker."""

    @property
    def silence(self) -> float:
        """Seconds since the broker was last heard."""

    def emit(self, name: str, /, *args: Any) -> None:
        """Tell the broker something."""

    def submit(self, name: str, /, *args: Any, timeout: float | None = None, idempotent: bool = False) -> Future[Any]:
        """Ask the broker something."""


class Working:
    """The jobs of one worker. They come on the link's thread; any thread takes them."""

    def __init__(self, client: Speaker, names: Callable[[], list[str]], capacity: int) -> None:
        self.lease = float("inf")
        """Seconds of silence after which the broker takes this worker for dead."""
        self._client = client
        self._names = names
        self._capacity = capacity
        self._term = 0
        self._announcing = threading.Lock()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()

    def announce(self, timeout: float | None = None) -> Future[Any]:
        """Say that we are there, and have nothing but what has begun; return the future of our lease.

        What the broker gave before it heard of that does not count: it gives it to others.
        """
        with self._announcing:  # In the order of the terms.
            self._term += 1
            self.purge()
            return self._client.submit(
                READY, self._names(), self._capacity, self._term, timeout=timeout, idempotent=True
            )

    def taken(self, wire: Wire) -> None:
        """On the link's thread: the broker gives a job. Raises msgspec.ValidationError, CodecError: it is none."""
        job = msgspec.convert(wire.args, Job)
        find_codec(job.codec)
        self._jobs.put(job)

    def lapsed(self) -> None:
        """The broker knows nothing of us, or we were stopped for longer than our lease: others have what we held."""
        self.announce(timeout=float("inf"))

    def take(self, timeout: float) -> Job | None:
        """Return the next job to run, within ``timeout`` seconds; None: there is none, or `interrupt` was called."""
        try:
            job = self._jobs.get(timeout=timeout) if timeout > 0 else self._jobs.get_nowait()
            while job is not None and job.term != self._term:  # It was given before we announced ourselves anew.
                job = self._jobs.get_nowait()
        except queue.Empty:
            return None
        if job is None:
            self._jobs.put(None)  # for the other threads
        elif self._client.silence > self.lease:
            self.lapsed()
            return None
        return job

    def interrupt(self) -> None:
        """End the waits of all threads until `purge`."""
        self._jobs.put(None)

    def purge(self) -> None:
        """Forget what is held and has not begun, and that the waits were ended."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._jobs.get_nowait()

    def begin(self, job: Job) -> None:
        """Say that a job begins."""
        self._client.emit(BEGUN, job.token)

    def progress(self, job: Job, done: Any, total: Any) -> None:
        """Say how far a job is."""
        self._client.emit(PROGRESSED, job.token, done, total)

    def finish(self, job: Job, outcome: tuple[str, bytes]) -> None:
        """Say what became of a job. Raises FrameTooLarge."""
        self._client.emit(DONE, job.token, *outcome)
