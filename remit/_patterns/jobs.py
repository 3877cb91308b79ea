"""Both ends of jobs: the broker between clients and workers, and the jobs that one worker holds."""

from __future__ import annotations

import contextlib
import queue
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final

import msgspec

from remit._patterns import names
from remit._patterns.event_router import EventRouter
from remit._patterns.request_reply import (
    IncomingRequest,
    Post,
    Reply,
    RequestServer,
    decode_nested,
    encode_nested,
    error_reply,
    late_reply,
    send_reply,
    session_of,
)
from remit._protocol.job_queue import JobQueue, QueuedJob
from remit._protocol.leases import Leases
from remit._protocol.session import FOREVER, Session
from remit.codec import EventMessage, find_codec
from remit.errors import CodecError, DeadLetter, EmitError, FrameTooLarge
from remit.event import Sender
from remit.listeners import matcher

if TYPE_CHECKING:
    from remit.client import Client


TOKEN_BITS: Final = 48
"""Random bits of a broker's first token: a restarted broker must not reuse a token that a worker still holds."""
SWEEP_INTERVAL_S: Final = 0.25
"""Seconds between two searches for expired leases and deadlines."""
_DEAD_LETTER: Final = f"{DeadLetter.__module__}.{DeadLetter.__qualname__}"


class BrokerCore:
    """Connects the `JobQueue` of one broker with the events of its clients and workers. ``post`` sends an event."""

    def __init__(
        self,
        router: EventRouter,
        request_server: RequestServer,
        post: Post,
        *,
        lease: float,
        max_attempts: int,
        queue: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.jobs = JobQueue(max_attempts=max_attempts, queue=queue, first=secrets.randbits(TOKEN_BITS))
        self.workers = Leases(lease)
        self.draining = False
        self._request_server = request_server
        self._post = post
        self._clock = clock
        self._sweep_at = 0.0
        router.register(names.REQUEST, self._on_request, replace=True)
        router.register(names.JOB_STARTED, self._on_job_started)
        router.register(names.JOB_PROGRESS, self._on_job_progress)
        router.register(names.JOB_DONE, self._on_job_done)
        router.request_handlers[names.WORKER_READY] = self._on_worker_ready
        router.request_handlers[names.WORKER_LEAVE] = self.jobs.retire_worker
        router.session_closed.append(self.on_session_closed)
        # A job that a worker has started runs to its end: user code is not interrupted.
        router.request_cancelled.append(self.jobs.cancel)

    def advance(self, caught_up: float) -> None:
        """Expire leases and deadlines that are due, and assign waiting jobs to idle workers."""
        # `caught_up` is the time of the last read that emptied the link: silence of a worker is measured up to it, so
        # that no worker expires because the broker was not ticked.
        now = self._clock()
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_INTERVAL_S
            for session in self.workers.remove_expired(caught_up):
                self._requeue_jobs_of(session)
                with contextlib.suppress(EmitError, FrameTooLarge):  # Its session may have ended.
                    self._post(session, names.WORKER_UNKNOWN, ())  # A worker that is alive announces itself again.
            for job in self.jobs.expire_jobs(now):
                self._reply(job, late_reply(job.client.codec))
        self._assign_jobs(now)

    @property
    def dead_letters(self) -> tuple[tuple[str, tuple[Any, ...], dict[str, Any], int], ...]:
        """The last dead letters: name, arguments, keyword arguments, attempts."""
        return tuple((job.name, *_arguments_of(job), job.attempt) for job in self.jobs.dead)

    def stats(self) -> dict[str, int]:
        """Return counters of jobs, and the present numbers of jobs and workers."""
        counts = ("submitted", "done", "requeued", "dead", "late", "cancelled", "refused", "stale")
        return {
            **{name: self.jobs.counts[name] for name in counts},
            "waiting": self.jobs.waiting,
            "in_hand": len(self.jobs) - self.jobs.waiting,
            "workers": len(self.workers),
        }

    # -- events of clients -------------------------------------------------------------------------------------

    def _on_request(self, message: EventMessage, sender: Sender | None, redelivered: bool) -> None:
        session = session_of(sender)
        request = msgspec.convert(message.args, IncomingRequest)
        if not self._request_server.should_answer(session, request, redelivered):
            return
        name = decode_nested(session.codec, request.body).name
        if name.startswith(names.RESERVED):
            self._request_server.handle_request(message, sender, redelivered)
            return
        deadline = FOREVER if request.remaining_ms is None else self._clock() + request.remaining_ms / 1000
        job = QueuedJob(session, request.id, name, request.body, session.codec.name, deadline)
        if self.draining:
            reason = "the broker is draining and accepts no more requests"
        elif not self.jobs.submit(job):
            reason = "the broker is full: its queue bounds the jobs in it"
        else:
            return
        self._reply(job, ("refused", encode_nested(session.codec, "", (reason,), {})))

    # -- events of workers -------------------------------------------------------------------------------------

    def _on_worker_ready(self, session: Session, patterns: list[str], capacity: int, term: int = 0) -> float:
        """Register a worker and return its lease. Raises msgspec.ValidationError, TypeError."""
        matches = [matcher(pattern) for pattern in msgspec.convert(patterns, list[str])]
        self.jobs.register_worker(
            session, lambda name: any(match(name) for match in matches), max(1, int(capacity)), term
        )
        self.workers.register(session)
        return self.workers.lease_s

    def _on_job_started(self, message: EventMessage, sender: Sender | None, _: bool) -> None:
        (token,) = message.args
        self.jobs.start_job(session_of(sender), token)

    def _on_job_progress(self, message: EventMessage, sender: Sender | None, _: bool) -> None:
        token, done, total = message.args
        job = self.jobs.job_held_by(session_of(sender), token)
        if job is not None:
            with contextlib.suppress(EmitError):  # The session of the client has ended.
                self._post(job.client, names.PROGRESS, (job.request_id, done, total))

    def _on_job_done(self, message: EventMessage, sender: Sender | None, _: bool) -> None:
        token, outcome, result = message.args
        job = self.jobs.finish_job(session_of(sender), token)
        if job is not None:
            self._reply(job, (outcome, result))

    def on_session_closed(self, session: Session) -> None:
        """Remove a client or a worker whose session has ended."""
        if self.workers.remove(session):
            self._requeue_jobs_of(session)
        self.jobs.remove_client(session)

    # -- inside ------------------------------------------------------------------------------------------------

    def _requeue_jobs_of(self, worker: Session) -> None:
        """Remove a lost worker; reply with DeadLetter for jobs that have used up their attempts."""
        for job in self.jobs.remove_worker(worker):
            why = f"{job.attempt} workers died of {job.name!r}"
            self._reply(job, ("dead", encode_nested(job.client.codec, "", (_DEAD_LETTER, why, ""), {})))

    def _assign_jobs(self, now: float) -> None:
        for worker, job in self.jobs.assign():
            remaining_ms = None if job.deadline == FOREVER else max(0, int((job.deadline - now) * 1000))
            try:
                self._post(
                    worker.key, names.JOB, (job.token, job.attempt + 1, remaining_ms, job.codec, job.body, worker.term)
                )
            except FrameTooLarge as error:
                self.jobs.finish_job(worker.key, job.token)
                self._reply(job, error_reply(job.client.codec, error))
            except EmitError:
                self.workers.remove(worker.key)
                self._requeue_jobs_of(worker.key)
                return  # The jobs of the lost worker are queued again, so the next call starts over.

    def _reply(self, job: QueuedJob, reply: Reply) -> None:
        send_reply(self._post, job.client, job.request_id, reply)


def _arguments_of(job: QueuedJob) -> tuple[tuple[Any, ...], dict[str, Any]]:
    try:
        call = decode_nested(job.client.codec, job.body)
    except CodecError:
        return (), {}
    return call.args, call.kwargs


class Job(msgspec.Struct, array_like=True, frozen=True):
    """A job as received by a worker."""

    token: int
    attempt: int
    remaining_ms: int | None
    """Milliseconds until its deadline; None without one."""
    codec: str
    body: bytes
    term: int = 0
    """Number of the worker's announcement after which the job was assigned."""


class WorkerJobs:
    """Jobs that one worker holds and has not started. The I/O thread adds them; any thread waits for them."""

    def __init__(self, client: Client, patterns: Callable[[], list[str]], capacity: int) -> None:
        self.lease_s = float("inf")
        """Seconds of silence after which the broker considers this worker dead."""
        self._client = client
        self._patterns = patterns
        self._capacity = capacity
        self._term = 0
        self._announce_lock = threading.Lock()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        """None interrupts the waits."""

    def announce(self, timeout: float | None = None) -> Future[Any]:
        """Send WORKER_READY and return the future of the lease. Discard unstarted jobs: the broker requeues them."""
        # The lock keeps the announcements in the order of their terms: the broker ignores an older term.
        with self._announce_lock:
            self._term += 1
            self.discard_unstarted()
            return self._client.submit(
                names.WORKER_READY, self._patterns(), self._capacity, self._term, timeout=timeout, idempotent=True
            )

    def on_job(self, message: EventMessage) -> None:
        """Add a job, on the I/O thread. Raises msgspec.ValidationError, CodecError."""
        job = msgspec.convert(message.args, Job)
        find_codec(job.codec)
        self._jobs.put(job)

    def on_lease_lost(self) -> None:
        """Announce the worker again, after a restart of the broker or the end of the lease: its jobs were requeued."""
        self.announce(timeout=float("inf"))

    def wait_for_job(self, timeout: float) -> Job | None:
        """Return the next job, or None after ``timeout`` seconds or `interrupt_waits`."""
        try:
            job = self._jobs.get(timeout=timeout) if timeout > 0 else self._jobs.get_nowait()
            # A job of an earlier term was requeued by the broker: another worker runs it.
            while job is not None and job.term != self._term:
                job = self._jobs.get_nowait()
        except queue.Empty:
            return None
        if job is None:
            self._jobs.put(None)  # Pass the interrupt on to the other waiting threads.
        elif self._client.silence > self.lease_s:
            self.on_lease_lost()
            return None
        return job

    def interrupt_waits(self) -> None:
        """Let `wait_for_job` return None in all threads until `discard_unstarted`."""
        self._jobs.put(None)

    def discard_unstarted(self) -> None:
        """Discard the jobs that have not started, and the interrupt."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._jobs.get_nowait()
