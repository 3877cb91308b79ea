"""Brokering: a broker's side of jobs: questions become jobs, workers get them, and their answers go to who asked."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from remit.codec import Wire
from remit.endpoint import Clock
from remit.errors import CodecError, DeadLetter, EmitError, FrameTooLarge
from remit.listeners import RESERVED, Control, matcher
from remit.patterns.answering import Answering, Post, late, read_question, send, session_of, told
from remit.patterns.asking import PROGRESS, REQUEST
from remit.patterns.envelope import seal, unseal
from remit.protocol.job import Job
from remit.protocol.jobs import Jobs
from remit.protocol.leases import Leases
from remit.protocol.session import Session
from remit.sender import Sender

__all__ = ["BEGUN", "DONE", "JOB", "LEAVE", "PROGRESSED", "READY", "SWEEP", "UNKNOWN", "Brokering"]

TOKEN_BITS: Final = 48
"""Bits of a broker's first token: what a worker still has from a broker that died must not name a job of another."""
SWEEP: Final = 0.25
"""Seconds between two looks at leases and deadlines."""
UNKNOWN: Final = "remit.unknown"
"""An event to one who works without being known: it was taken for dead, and should announce itself."""
READY: Final = "remit.ready"
"""A request of a worker: the names it takes, how many jobs at once, its term. Answered with its lease in seconds."""
LEAVE: Final = "remit.leave"
"""A request of a worker: it takes no more, and what it has not begun is for others."""
JOB: Final = "remit.job"
"""An event to a worker: token, attempt, milliseconds left or None, codec, the sealed question, the worker's term."""
BEGUN: Final = "remit.begun"
"""An event of a worker: token."""
PROGRESSED: Final = "remit.progressed"
"""An event of a worker: token, done, total."""
DONE: Final = "remit.done"
"""An event of a worker: token, what became of it, the sealed answer."""
FOREVER: Final = float("inf")


class Brokering:
    """What one broker does with what its clients and workers say. ``post`` sends an event to one of them."""

    def __init__(
        self,
        answering: Answering,
        post: Post,
        *,
        lease: float,
        max_attempts: int,
        queue: int,
        clock: Clock = time.monotonic,
    ) -> None:
        self.jobs = Jobs(max_attempts=max_attempts, queue=queue, first=secrets.randbits(TOKEN_BITS))
        self.workers = Leases(lease)
        self.draining = False
        """Whether it takes no more requests."""
        self._answering = answering
        self._post = post
        self._clock = clock
        self._sweep_at = 0.0
        answering.services |= {READY: self._ready, LEAVE: self.jobs.give_back}
        controls: dict[str, Callable[[Wire, Session, bool], None]] = {
            REQUEST: self._requested,
            BEGUN: self._begun,
            PROGRESSED: self._progressed,
            DONE: self._done,
        }
        self.controls: dict[str, Control] = {name: _of_session(control) for name, control in controls.items()}
        """What takes the events of clients and workers, by name."""

    def advance(self, caught_up: float) -> None:
        """Do what time demands, and give waiting jobs to idle workers.

        What workers said until ``caught_up`` has been heard: a broker that had no time to listen buries nobody.
        """
        now = self._clock()
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP
            for session in self.workers.lapsed(caught_up):
                self._bury(session)
                with contextlib.suppress(EmitError, FrameTooLarge):  # It has ended meanwhile.
                    self._post(session, UNKNOWN, ())  # should it ever come back
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

    def _requested(self, wire: Wire, session: Session, redelivered: bool) -> None:
        question = read_question(wire)
        if not self._answering.waited_for(session, question, redelivered):
            return
        name = unseal(session.codec, question.sealed).name
        if name.startswith(RESERVED):
            self._answering.requested(wire, session.sender, redelivered)
            return
        deadline = FOREVER if question.left is None else self._clock() + question.left / 1000
        job = Job(session, question.id, name, question.sealed, session.codec.name, deadline)
        if self.draining:
            self._refuse(session, question.id, "the broker drains and takes no more")
        elif not self.jobs.submit(job):
            self._refuse(session, question.id, "the broker is full")

    def _refuse(self, session: Session, question: int, why: str) -> None:
        send(self._post, session, question, ("refused", seal(session.codec, "", (why,), {})))

    def cancelled(self, session: Session, question: int) -> None:
        """Nobody waits: what nobody has begun is dropped. Code of the user's that runs is not stopped half way."""
        self.jobs.cancel(session, question)

    # -- what workers say --------------------------------------------------------------------------------------

    def _ready(self, session: Session, names: list[str], capacity: int, term: int = 0) -> float:
        """Service: a worker is there. Raises msgspec.ValidationError, TypeError."""
        matches = [matcher(name) for name in msgspec.convert(names, list[str])]
        self.jobs.ready(session, lambda name: any(match(name) for match in matches), max(1, int(capacity)), term)
        self.workers.begin(session)
        return self.workers.seconds

    def _begun(self, wire: Wire, session: Session, _: bool) -> None:
        (token,) = wire.args
        self.jobs.begun(session, token)

    def _progressed(self, wire: Wire, session: Session, _: bool) -> None:
        token, done, total = wire.args
        job = self.jobs.in_hand(token)
        if job is not None and job.worker is not None and job.worker.key is session:
            self._tell(job, PROGRESS, (job.question, done, total))

    def _done(self, wire: Wire, session: Session, _: bool) -> None:
        token, outcome, sealed = wire.args
        job = self.jobs.done(session, token)
        if job is not None:
            client: Any = job.client
            send(self._post, client, job.question, (outcome, sealed))

    def _tell(self, job: Job, name: str, args: tuple[Any, ...]) -> None:
        client: Any = job.client
        with contextlib.suppress(EmitError):  # The client has ended: nobody waits.
            self._post(client, name, args)

    # -- what time and death say -------------------------------------------------------------------------------

    def ended(self, session: Session) -> None:
        """A client or a worker has ended its session, or was silent for so long that it was forgotten."""
        if self.workers.end(session):
            self._bury(session)
        self.jobs.client_lost(session)

    def _bury(self, session: Session) -> None:
        for job in self.jobs.worker_lost(session):
            client: Any = job.client
            kind, why = (
                f"{DeadLetter.__module__}.{DeadLetter.__qualname__}",
                f"{job.attempt} workers died of {job.name!r}",
            )
            send(self._post, client, job.question, ("dead", seal(client.codec, "", (kind, why, ""), {})))

    def _tell_the_late(self, now: float) -> None:
        for job in self.jobs.late(now):
            client: Any = job.client
            send(self._post, client, job.question, late(client.codec))

    def _assign(self, now: float) -> None:
        for worker, job in self.jobs.assign():
            left = None if job.deadline == FOREVER else max(0, int((job.deadline - now) * 1000))
            session: Any = worker.key
            try:
                self._post(session, JOB, (job.token, job.attempt + 1, left, job.codec, job.body, worker.term))
            except FrameTooLarge as error:
                self.jobs.done(session, job.token)
                client: Any = job.client
                send(self._post, client, job.question, told(client.codec, error))
            except EmitError:
                self.workers.end(session)
                self._bury(session)
                return


def _of_session(control: Callable[[Wire, Session, bool], None]) -> Callable[[Wire, Sender | None, bool], None]:
    def hear(wire: Wire, sender: Sender | None, redelivered: bool) -> None:
        control(wire, session_of(sender), redelivered)

    return hear


def _opened(job: Job) -> tuple[tuple[Any, ...], dict[str, Any]]:
    client: Any = job.client
    try:
        wire = unseal(client.codec, job.body)
    except CodecError:
        return (), {}
    return wire.args, wire.kwargs
