"""Both ends of jobs: the broker between clients and workers, and the jobs that one worker holds."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from remit._patterns import names
from remit._patterns.event_router import EventRouter
from remit._patterns.request_reply import (
    IncomingRequest,
    Post,
    Reply,
    RequestServer,
    error_reply,
    make_reply,
    send_reply,
    session_of,
)
from remit._protocol.job_queue import JOB_BYTES, JobQueue, QueuedJob
from remit._protocol.leases import Leases
from remit._protocol.session import FOREVER, Session
from remit.codec import EventMessage, decode_event, find_codec, printable
from remit.errors import CodecError, DeadLetter, EmitError, FrameTooLarge
from remit.event import Sender
from remit.listeners import NAMES_CACHED, matcher
from remit.transport import next_item

if TYPE_CHECKING:
    from remit.client import Client


TOKEN_BITS: Final = 48
"""Random bits of a broker's first token: a restarted broker must not reuse a token that a worker still holds."""
SWEEP_INTERVAL_S: Final = 0.25
"""Seconds between two searches for expired leases and deadlines."""
logger = logging.getLogger("remit")
_DEAD_LETTER: Final = f"{DeadLetter.__module__}.{DeadLetter.__qualname__}"


def this_process() -> str:
    """Return a name of the calling process that `is_running` understands on the same host; empty if it has none."""
    return _process_name(os.getpid())


def is_running(process: str) -> bool:
    """Return whether a process exists on this host and is neither stopped nor a zombie."""
    # A job that holds the GIL silences its worker. The name is the worker's own: one that names another process
    # gains no more than by sending heartbeats.
    pid = process.rpartition(" ")[2]
    return pid.isdecimal() and process == _process_name(int(pid))


def _process_name(pid: int) -> str:
    """Return boot, namespace, start time and pid of a process that is not stopped; empty without /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        # The command in parentheses may contain anything. After it: the state, and the start time as 20th field.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return ""
    stopped = fields[0] in (b"T", b"t", b"Z", b"X")
    return "" if stopped else f"{boot.strip()} {namespace} {int(fields[19])} {pid}"


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
        job_bytes: int = JOB_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.jobs = JobQueue(
            max_attempts=max_attempts, queue=queue, queue_bytes=job_bytes, first=secrets.randbits(TOKEN_BITS)
        )
        self._processes: dict[Session, str] = {}
        """Process of each worker, as the worker names it."""
        self.workers = Leases(lease, lambda session: is_running(self._processes.get(session, "")))
        self.draining = False
        self._request_server = request_server
        self._post = post
        self._clock = clock
        self._sweep_at = 0.0
        self._unregistered: set[str] = set()
        """Names of jobs that no worker has registered, and that were logged."""
        router.register(names.REQUEST, self._on_request, replace=True, repeatable=True)
        router.register(names.JOB_STARTED, self._on_job_started, repeatable=True)
        router.register(names.JOB_PROGRESS, self._on_job_progress, repeatable=True)
        router.register(names.JOB_DONE, self._on_job_done, repeatable=True)
        router.request_handlers[names.WORKER_READY] = self._on_worker_ready
        router.request_handlers[names.WORKER_LEAVE] = self._on_worker_leave
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
                silent = f"was silent for longer than its lease of {self.workers.lease_s:g} s"
                away = "was disconnected and has not reconnected"
                self._requeue_jobs_of(session, away if session.peer is None else silent)
                with contextlib.suppress(EmitError, FrameTooLarge):  # Its session may have ended.
                    self._post(session, names.WORKER_UNKNOWN, ())  # A worker that is alive announces itself again.
            for job in self.jobs.expire_jobs(now):
                self._reply(job, make_reply(job.client.codec, "late"))
        self._assign_jobs(now)

    def repair(self) -> None:
        """Make the state consistent after an interrupt at any line; the interrupted event is handled again."""
        self.jobs.repair()
        for worker in list(self.jobs.workers.values()):
            if worker.key not in self.workers:
                self._requeue_jobs_of(worker.key, "was lost")

    @property
    def dead_letters(self) -> tuple[tuple[str, tuple[Any, ...], dict[str, Any], int], ...]:
        """The last dead letters: name, arguments, keyword arguments, attempts."""
        return tuple((job.name, *_arguments_of(job), job.attempt) for job in self.jobs.dead)

    def stats(self) -> dict[str, int]:
        """Return counters of jobs, and the present numbers of jobs and workers."""
        counts = ("submitted", "done", "failed", "requeued", "dead", "late", "cancelled", "refused", "stale")
        return {
            **{name: self.jobs.counts[name] for name in counts},
            "waiting": self.jobs.waiting,
            "in_hand": len(self.jobs) - self.jobs.waiting,
            "job_bytes": self.jobs.bytes,
            "workers": len(self.workers),
        }

    def _on_request(self, message: EventMessage, sender: Sender | None, redelivered: bool) -> None:
        session = session_of(sender)
        request = msgspec.convert(message.args, IncomingRequest)
        if not self._request_server.should_answer(session, request, redelivered):
            return
        try:
            name = decode_event(session.codec, request.body).name
        except CodecError as error:
            send_reply(self._post, session, request.id, error_reply(session.codec, error))
            return
        if name.startswith(names.RESERVED):
            self._request_server.handle_request(message, sender, redelivered)
            return
        deadline = FOREVER if request.remaining_ms is None else self._clock() + request.remaining_ms / 1000
        job = QueuedJob(session, request.id, name, request.body, session.codec.name, deadline)
        if self.draining:
            reason = "the broker is draining and accepts no more requests"
        elif not self.jobs.submit(job):
            reason = "the broker is full: its queue and job_bytes bound the jobs in it"
        else:
            if not self.jobs.accepts(name):
                self._note_unregistered(job)
            return
        self._reply(job, make_reply(session.codec, "refused", reason))

    def _on_worker_ready(
        self,
        session: Session,
        patterns: list[str],
        capacity: int,
        term: int = 0,
        running: list[int] | None = None,
        process: str = "",
    ) -> float:
        """Register a worker and return its lease. Raises msgspec.ValidationError, TypeError."""
        matches = [matcher(pattern) for pattern in msgspec.convert(patterns, list[str])]

        def accepts(name: str) -> bool:
            return any(match(name) for match in matches)

        dead = self.jobs.register_worker(session, accepts, max(1, int(capacity)), term, running)
        self._processes[session] = process
        self.workers.register(session)
        self._unregistered = {name for name in self._unregistered if not accepts(name)}
        self._reply_dead(dead, "announced itself again without it")
        return self.workers.lease_s

    def _on_worker_leave(self, session: Session, running: list[int] | None = None, why: str = "") -> None:
        """Assign no more jobs to a worker, and requeue those that it has not started, or has given up."""
        self._reply_dead(self.jobs.retire_worker(session, running), why or "left without a result")

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
        job = self.jobs.job_finished_by(session_of(sender), token)
        if job is None:
            self.jobs.counts["stale"] += 1
            return
        # Before the job is removed: an interrupt in between sends the reply twice, and the client ignores one.
        self._reply(job, (outcome, result))
        self.jobs.counts["failed"] += outcome == "failed"
        self.jobs.finish_job(job)

    def on_session_closed(self, session: Session) -> None:
        """Remove a client or a worker whose session has ended."""
        if self.workers.remove(session):
            self._requeue_jobs_of(session, "has ended its session")
        self._processes.pop(session, None)
        self.jobs.remove_client(session)

    def _requeue_jobs_of(self, worker: Session, why: str) -> None:
        """Remove a lost worker; reply with DeadLetter for jobs that have used up their attempts."""
        self._reply_dead(self.jobs.remove_worker(worker), why)

    def _reply_dead(self, dead: list[QueuedJob], why: str) -> None:
        for job in dead:
            text = f"{job.attempt} workers died of {job.name!r}; the last one {why}"
            logger.error("dead letter: %s", text)
            self._reply(job, make_reply(job.client.codec, "dead", _DEAD_LETTER, printable(text), ""))

    def _note_unregistered(self, job: QueuedJob) -> None:
        """Log a name that no worker has registered, and send the client the reason, in case it waits in vain."""
        text = f"no worker has registered {job.name!r}"
        if job.name not in self._unregistered and len(self._unregistered) < NAMES_CACHED:
            self._unregistered.add(job.name)
            logger.warning("%s: its requests wait; start a worker with a handler of that name", text)
        self._send_note(job, printable(text))

    def _send_note(self, job: QueuedJob, text: str) -> None:
        job.noted = bool(text)
        with contextlib.suppress(EmitError, FrameTooLarge):
            self._post(job.client, names.REQUEST_NOTE, (job.request_id, text))

    def _assign_jobs(self, now: float) -> None:
        for worker, job in self.jobs.assign():
            remaining_ms = None if job.deadline == FOREVER else max(0, int((job.deadline - now) * 1000))
            try:
                self._post(
                    worker.key, names.JOB, (job.token, job.attempt + 1, remaining_ms, job.codec, job.body, worker.term)
                )
                job.posted = True
                if job.noted:
                    self._send_note(job, "")
            except FrameTooLarge as error:
                self._reply(job, error_reply(job.client.codec, error))
                self.jobs.finish_job(job)
            except EmitError:
                self.workers.remove(worker.key)
                self._requeue_jobs_of(worker.key, "has ended its session")
                return  # The jobs of the lost worker are queued again, so the next call starts over.

    def _reply(self, job: QueuedJob, reply: Reply) -> None:
        send_reply(self._post, job.client, job.request_id, reply)


def _arguments_of(job: QueuedJob) -> tuple[tuple[Any, ...], dict[str, Any]]:
    try:
        call = decode_event(job.client.codec, job.body)
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
    """Jobs that one worker holds. The I/O thread adds them; any thread waits for them and runs them."""

    def __init__(self, client: Client, patterns: Callable[[], list[str]], capacity: int) -> None:
        self.lease_s = float("inf")
        """Seconds of silence after which the broker considers this worker dead."""
        self._client = client
        self._patterns = patterns
        self._capacity = capacity
        self._term = 0
        self._last_job = 0, 0
        """Term and token of the last job."""
        self._announce_lock = threading.RLock()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        """None interrupts the waits."""

    def announce(self, timeout: float | None = None, running: list[int] | None = None) -> Future[Any]:
        """Send WORKER_READY and return the future of the lease. Discard unstarted jobs: the broker requeues them.

        It also requeues the started jobs that are not among the tokens ``running``, if given.
        """
        # The lock keeps the announcements in the order of their terms: the broker ignores an older term.
        with self._announce_lock:
            self._term += 1
            self.discard_unstarted()
            arguments = self._patterns(), self._capacity, self._term, running, this_process()
            return self._client.submit(names.WORKER_READY, *arguments, timeout=timeout, idempotent=True)

    def release_lock(self) -> None:
        """Release the lock that an interrupted `announce` of this thread has left locked."""
        while self._announce_lock._is_owned():  # type: ignore[attr-defined]
            self._announce_lock.release()

    def on_job(self, message: EventMessage) -> None:
        """Add a job, on the I/O thread. Raises msgspec.ValidationError, CodecError."""
        job = msgspec.convert(message.args, Job)
        find_codec(job.codec)
        term, token = self._last_job
        if job.term == term and job.token <= token:
            return  # Tokens count up: a broker that was interrupted has sent it twice.
        self._last_job = job.term, job.token
        self._jobs.put(job)

    def on_lease_lost(self) -> None:
        """Announce the worker again, after a restart of the broker or the end of the lease: its jobs were requeued."""
        self.announce(timeout=float("inf"))

    def wait_for_job(self, timeout: float) -> Job | None:
        """Return the next job, or None after ``timeout`` seconds or `interrupt_waits`."""
        try:
            job = next_item(self._jobs, max(0.0, timeout))
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
