"""Working: a worker's side of jobs: it announces itself, holds what it is given, and says what became of it."""

from __future__ import annotations

import contextlib
import queue
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, Protocol

import msgspec

from remit._patterns.event_router import EventRouter, Handler
from remit._patterns.names import (
    JOB,
    JOB_DONE,
    JOB_PROGRESS,
    JOB_STARTED,
    PROGRESS,
    REQUEST,
    RESERVED,
    WORKER_LEAVE,
    WORKER_READY,
    WORKER_UNKNOWN,
)
from remit._patterns.request_reply import (
    Post,
    RequestServer,
    decode_nested,
    encode_nested,
    error_reply,
    late_reply,
    read_request,
    send_reply,
    session_of,
)
from remit._protocol.job_queue import JobQueue, QueuedJob
from remit._protocol.leases import Leases
from remit._protocol.session import Session
from remit.codec import EventMessage, find_codec
from remit.errors import CodecError, DeadLetter, EmitError, FrameTooLarge
from remit.event import Sender
from remit.listeners import matcher

__all__ = [
    "SWEEP_INTERVAL_S",
    "BrokerCore",
    "Job",
    "Speaker",
    "WorkerJobs",
]


TOKEN_BITS: Final = 48
"""Bits of a broker's first token: what a worker still has from a broker that died must not name a job of another."""
SWEEP_INTERVAL_S: Final = 0.25
"""Seconds between two looks at leases and deadlines."""
FOREVER: Final = float("inf")


class BrokerCore:
    """What one broker does with what its clients and workers say. ``post`` sends an event to one of them."""

    def __init__(
        self,
        router: EventRouter,
        answering: RequestServer,
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
        """Whether it takes no more requests."""
        self._answering = answering
        self._post = post
        self._clock = clock
        self._sweep_at = 0.0
        router.register(REQUEST, _of_session(self._requested), replace=True)
        router.register(JOB_STARTED, _of_session(self._begun))
        router.register(JOB_PROGRESS, _of_session(self._progressed))
        router.register(JOB_DONE, _of_session(self._done))
        router.register_request(WORKER_READY, self._ready)
        router.register_request(WORKER_LEAVE, self.jobs.retire_worker)
        router.on_session_closed(self.on_session_closed)
        router.on_request_cancelled(self.on_request_cancelled)

    def advance(self, caught_up: float) -> None:
        """Do what time demands, and give waiting jobs to idle workers.

        What workers said until ``caught_up`` has been heard: a broker that had no time to listen buries nobody.
        """
        now = self._clock()
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_INTERVAL_S
            for session in self.workers.remove_expired(caught_up):
                self._bury(session)
                with contextlib.suppress(EmitError, FrameTooLarge):  # It has ended meanwhile.
                    self._post(session, WORKER_UNKNOWN, ())  # should it ever come back
            self._tell_the_late(now)
        self._assign(now)

    @property
    def dead_letters(self) -> tuple[tuple[str, tuple[Any, ...], dict[str, Any], int], ...]:
        """The last jobs that were given up: name, arguments, keyword arguments, attempts."""
        return tuple((job.name, *_opened(job), job.attempt) for job in self.jobs.dead)

    def stats(self) -> dict[str, int]:
        """Return counters of jobs, and what is here now."""
        names = ("submitted", "done", "requeued", "dead", "late", "cancelled", "refused", "stale")
        return {
            **{name: self.jobs.counts[name] for name in names},
            "waiting": self.jobs.waiting,
            "in_hand": len(self.jobs) - self.jobs.waiting,
            "workers": len(self.workers),
        }

    # -- what clients say --------------------------------------------------------------------------------------

    def _requested(self, wire: EventMessage, session: Session, redelivered: bool) -> None:
        question = read_request(wire)
        if not self._answering.should_answer(session, question, redelivered):
            return
        name = decode_nested(session.codec, question.body).name
        if name.startswith(RESERVED):
            self._answering.handle_request(wire, session.sender, redelivered)
            return
        deadline = FOREVER if question.remaining_ms is None else self._clock() + question.remaining_ms / 1000
        job = QueuedJob(session, question.id, name, question.body, session.codec.name, deadline)
        if self.draining:
            self._refuse(session, question.id, "the broker drains and takes no more")
        elif not self.jobs.submit(job):
            self._refuse(session, question.id, "the broker is full")

    def _refuse(self, session: Session, question: int, why: str) -> None:
        send_reply(self._post, session, question, ("refused", encode_nested(session.codec, "", (why,), {})))

    def on_request_cancelled(self, session: Session, question: int) -> None:
        """Nobody waits: what nobody has begun is dropped. Code of the user's that runs is not stopped half way."""
        self.jobs.cancel(session, question)

    # -- what workers say --------------------------------------------------------------------------------------

    def _ready(self, session: Session, names: list[str], capacity: int, term: int = 0) -> float:
        """Service: a worker is there. Raises msgspec.ValidationError, TypeError."""
        matches = [matcher(name) for name in msgspec.convert(names, list[str])]
        self.jobs.register_worker(
            session, lambda name: any(match(name) for match in matches), max(1, int(capacity)), term
        )
        self.workers.register(session)
        return self.workers.lease_s

    def _begun(self, wire: EventMessage, session: Session, _: bool) -> None:
        (token,) = wire.args
        self.jobs.start_job(session, token)

    def _progressed(self, wire: EventMessage, session: Session, _: bool) -> None:
        token, done, total = wire.args
        job = self.jobs.assigned_job(token)
        if job is not None and job.worker is not None and job.worker.key is session:
            self._tell(job, PROGRESS, (job.request_id, done, total))

    def _done(self, wire: EventMessage, session: Session, _: bool) -> None:
        token, outcome, sealed = wire.args
        job = self.jobs.finish_job(session, token)
        if job is not None:
            client: Any = job.client
            send_reply(self._post, client, job.request_id, (outcome, sealed))

    def _tell(self, job: QueuedJob, name: str, args: tuple[Any, ...]) -> None:
        client: Any = job.client
        with contextlib.suppress(EmitError):  # The client has ended: nobody waits.
            self._post(client, name, args)

    # -- what time and death say -------------------------------------------------------------------------------

    def on_session_closed(self, session: Session) -> None:
        """A client or a worker has ended its session, or was silent for so long that it was forgotten."""
        if self.workers.remove(session):
            self._bury(session)
        self.jobs.remove_client(session)

    def _bury(self, session: Session) -> None:
        for job in self.jobs.remove_worker(session):
            client: Any = job.client
            kind, why = (
                f"{DeadLetter.__module__}.{DeadLetter.__qualname__}",
                f"{job.attempt} workers died of {job.name!r}",
            )
            send_reply(
                self._post, client, job.request_id, ("dead", encode_nested(client.codec, "", (kind, why, ""), {}))
            )

    def _tell_the_late(self, now: float) -> None:
        for job in self.jobs.expire_jobs(now):
            client: Any = job.client
            send_reply(self._post, client, job.request_id, late_reply(client.codec))

    def _assign(self, now: float) -> None:
        for worker, job in self.jobs.assign():
            left = None if job.deadline == FOREVER else max(0, int((job.deadline - now) * 1000))
            session: Any = worker.key
            try:
                self._post(session, JOB, (job.token, job.attempt + 1, left, job.codec, job.body, worker.term))
            except FrameTooLarge as error:
                self.jobs.finish_job(session, job.token)
                client: Any = job.client
                send_reply(self._post, client, job.request_id, error_reply(client.codec, error))
            except EmitError:
                self.workers.remove(session)
                self._bury(session)
                return


def _of_session(control: Callable[[EventMessage, Session, bool], None]) -> Handler:
    def hear(wire: EventMessage, sender: Sender | None, redelivered: bool) -> None:
        control(wire, session_of(sender), redelivered)

    return hear


def _opened(job: QueuedJob) -> tuple[tuple[Any, ...], dict[str, Any]]:
    client: Any = job.client
    try:
        wire = decode_nested(client.codec, job.body)
    except CodecError:
        return (), {}
    return wire.args, wire.kwargs


class Job(msgspec.Struct, array_like=True, frozen=True):
    """A job as a worker gets it."""

    token: int
    attempt: int
    remaining_ms: int | None
    """Milliseconds until nobody waits for the answer; None: for ever."""
    codec: str
    body: bytes
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


class WorkerJobs:
    """The jobs of one worker. They come on the link's thread; any thread takes them."""

    def __init__(self, client: Speaker, names: Callable[[], list[str]], capacity: int) -> None:
        self.lease_s = float("inf")
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
            self.discard_unstarted()
            return self._client.submit(
                WORKER_READY, self._names(), self._capacity, self._term, timeout=timeout, idempotent=True
            )

    def on_job(self, wire: EventMessage) -> None:
        """On the link's thread: the broker gives a job. Raises msgspec.ValidationError, CodecError: it is none."""
        job = msgspec.convert(wire.args, Job)
        find_codec(job.codec)
        self._jobs.put(job)

    def on_lease_lost(self) -> None:
        """The broker knows nothing of us, or we were stopped for longer than our lease: others have what we held."""
        self.announce(timeout=float("inf"))

    def wait_for_job(self, timeout: float) -> Job | None:
        """Return the next job to run, within ``timeout`` seconds; None: there is none, or `interrupt` was called."""
        try:
            job = self._jobs.get(timeout=timeout) if timeout > 0 else self._jobs.get_nowait()
            while job is not None and job.term != self._term:  # It was given before we announced ourselves anew.
                job = self._jobs.get_nowait()
        except queue.Empty:
            return None
        if job is None:
            self._jobs.put(None)  # for the other threads
        elif self._client.silence > self.lease_s:
            self.on_lease_lost()
            return None
        return job

    def interrupt_waits(self) -> None:
        """End the waits of all threads until `purge`."""
        self._jobs.put(None)

    def discard_unstarted(self) -> None:
        """Forget what is held and has not begun, and that the waits were ended."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._jobs.get_nowait()

    def report_started(self, job: Job) -> None:
        """Say that a job begins."""
        self._client.emit(JOB_STARTED, job.token)

    def report_progress(self, job: Job, done: Any, total: Any) -> None:
        """Say how far a job is."""
        self._client.emit(JOB_PROGRESS, job.token, done, total)

    def report_done(self, job: Job, outcome: tuple[str, bytes]) -> None:
        """Say what became of a job. Raises FrameTooLarge."""
        self._client.emit(JOB_DONE, job.token, *outcome)
