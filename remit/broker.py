"""Broker: one server in the middle: clients ask it, workers take the jobs, and no death of either loses one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from remit.answering import late, read_question, send, session_of, told
from remit.asking import PROGRESS, REPLY, REQUEST
from remit.codec import Wire
from remit.envelope import seal, unseal
from remit.errors import CodecError, DeadLetter, EmitError, LinkClosed
from remit.listeners import RESERVED, OnError, matcher
from remit.location import Location
from remit.protocol.jobs import Job, Jobs
from remit.protocol.session import Session
from remit.sender import Sender
from remit.server import Server

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["BEGUN", "DONE", "JOB", "LEAVE", "PROGRESSED", "READY", "UNKNOWN", "Broker"]

LEASE: Final = 10.0
"""Seconds of silence after which a worker is taken for dead."""
RETURN: Final = 2.0
"""Seconds within which a worker whose connection was lost may come back and keep its jobs."""
SWEEP: Final = 0.25
"""Seconds between two looks at leases and deadlines."""
UNKNOWN: Final = "remit.unknown"
"""An event to one who works without being known: it was taken for dead, and should announce itself."""
READY: Final = "remit.ready"
"""A request of a worker: the names it takes, how many jobs at once. Answered with the seconds of its lease."""
LEAVE: Final = "remit.leave"
"""A request of a worker: it takes no more, and what it has not begun is for others."""
JOB: Final = "remit.job"
"""An event to a worker: token, attempt, milliseconds left or None, codec, the sealed question."""
BEGUN: Final = "remit.begun"
"""An event of a worker: token."""
PROGRESSED: Final = "remit.progressed"
"""An event of a worker: token, done, total."""
DONE: Final = "remit.done"
"""An event of a worker: token, what became of it, the sealed answer."""
FOREVER: Final = float("inf")


class Broker:
    """Takes requests from clients and gives them to workers, each to one that lives. Opens its location at once.

    A job is given to another worker when the one that has it dies: that happens ``lease`` seconds after it was last
    heard of, or earlier when its connection is lost and does not come back. After ``max_attempts`` workers have died of
    it, it is a dead letter. ``queue`` bounds the jobs in here; beyond it a request is refused. Other ``options``
    are those of `Server`. Raises as that does.
    """

    def __init__(
        self,
        location: str | Location | None = None,
        *,
        lease: float = LEASE,
        max_attempts: int = 3,
        queue: int = 65_536,
        on_error: OnError | None = None,
        **options: Any,
    ) -> None:
        self.server = Server(location, on_error=on_error, **options)
        self._jobs = Jobs(max_attempts=max_attempts, queue=queue)
        self._lease = lease
        self._workers: dict[Session, float | None] = {}
        self._sweep_at = 0.0
        self._draining = self._stopped = False
        controls: dict[str, Callable[[Wire, Session, bool], None]] = {
            REQUEST: self._requested,
            BEGUN: self._begun,
            PROGRESSED: self._progressed,
            DONE: self._done,
        }
        self.server.answering.services |= {READY: self._ready, LEAVE: self._jobs.give_back}
        self.server.forgetters.append(self._ended)
        self.server.canceller = self._cancelled
        for name, control in controls.items():
            self.server.controls[name] = _of_session(control)

    # -- making progress ---------------------------------------------------------------------------------------

    def tick(self) -> int:
        """Do what can be done now, without waiting; return how many events were handled."""
        handled = self.server.tick()
        now = time.monotonic()
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP
            self._end_leases(now)
            self._tell_the_late(now)
        self._assign(now)
        return handled

    def wait(self, timeout: float) -> None:
        """Return after ``timeout`` seconds, or earlier if `tick` may have something to do."""
        self.bounded_wait(timeout, self.server.wait)

    def bounded_wait(self, timeout: float, wait: Callable[[float], None]) -> None:
        """Wait by ``wait(seconds)``, for as long as no lease or deadline has to be looked at."""
        wait(min(timeout, SWEEP) if len(self._jobs) or self._workers else timeout)

    def run(self, timeout: float | None = None) -> None:
        """Tick until `stop` or `close` is called, or ``timeout`` seconds have passed."""
        deadline = FOREVER if timeout is None else time.monotonic() + timeout
        self._stopped = False
        while not self._stopped and (left := deadline - time.monotonic()) > 0:
            try:
                if not self.tick():
                    self.wait(min(left, 1.0))
            except LinkClosed:
                if self.server.is_open:
                    raise
                return

    def stop(self) -> None:
        """Make `run` return. Safe from any thread."""
        self._stopped = True
        self.server.stop()

    def drain(self, timeout: float) -> bool:
        """Take no more requests, and tick until all jobs are done; False after ``timeout`` seconds."""
        self.refuse()
        deadline = time.monotonic() + timeout
        while self.busy and (left := deadline - time.monotonic()) > 0:
            if not self.tick():
                self.wait(left)
        return not self.busy

    def refuse(self) -> None:
        """Take no more requests from now on."""
        self._draining = True

    @property
    def busy(self) -> bool:
        """Whether any job waits or is in hand."""
        return len(self._jobs) > 0

    def close(self) -> None:
        """End. May be called twice."""
        self.server.close()

    def __enter__(self) -> Broker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def location(self) -> Location:
        """Where clients and workers reach it."""
        return self.server.location

    @property
    def dead_letters(self) -> tuple[tuple[str, tuple[Any, ...], dict[str, Any], int], ...]:
        """The last jobs that were given up: name, arguments, keyword arguments, attempts."""
        return tuple((job.name, *_opened(job), job.attempt) for job in self._jobs.dead)

    def stats(self) -> dict[str, int]:
        """Return counters: jobs submitted, done, requeued, dead, late, cancelled, refused, stale; what is here now."""
        names = ("submitted", "done", "requeued", "dead", "late", "cancelled", "refused", "stale")
        return {
            **{name: self._jobs.counts[name] for name in names},
            "waiting": self._jobs.waiting,
            "in_hand": len(self._jobs) - self._jobs.waiting,
            "workers": len(self._workers),
        }

    # -- what clients say --------------------------------------------------------------------------------------

    def _requested(self, wire: Wire, session: Session, redelivered: bool) -> None:
        question = read_question(wire)
        if not self.server.answering.waited_for(session, question, redelivered):
            return
        name = unseal(session.codec, question.sealed).name
        if name.startswith(RESERVED):
            self.server.answering.requested(wire, session.sender, redelivered)
            return
        deadline = FOREVER if question.left is None else time.monotonic() + question.left / 1000
        job = Job(session, question.id, name, question.sealed, session.codec.name, deadline)
        if self._draining:
            self._refuse(session, question.id, "the broker drains and takes no more")
        elif not self._jobs.submit(job):
            self._refuse(session, question.id, "the broker is full")

    def _refuse(self, session: Session, question: int, why: str) -> None:
        send(self.server.post, session, question, ("refused", seal(session.codec, "", (why,), {})))

    def _cancelled(self, session: Session, question: int) -> None:
        """Nobody waits: what nobody has begun is dropped. Code of the user's that runs is not stopped half way."""
        self._jobs.cancel(session, question)

    # -- what workers say --------------------------------------------------------------------------------------

    def _ready(self, session: Session, names: list[str], capacity: int) -> float:
        """Service: a worker is there. Raises msgspec.ValidationError, TypeError."""
        matches = [matcher(name) for name in msgspec.convert(names, list[str])]
        self._jobs.ready(session, lambda name: any(match(name) for match in matches), max(1, int(capacity)))
        self._workers[session] = None
        return self._lease

    def _begun(self, wire: Wire, session: Session, _: bool) -> None:
        (token,) = wire.args
        if not self._jobs.begun(session, token):
            self._doubt(session)

    def _progressed(self, wire: Wire, session: Session, _: bool) -> None:
        token, done, total = wire.args
        job = self._jobs.in_hand(token)
        if job is not None and job.worker is not None and job.worker.key is session:
            self._tell(job, PROGRESS, (job.question, done, total))

    def _done(self, wire: Wire, session: Session, _: bool) -> None:
        token, outcome, sealed = wire.args
        job = self._jobs.done(session, token)
        if job is None:
            self._doubt(session)
        else:
            self._tell(job, REPLY, (job.question, outcome, sealed))

    def _doubt(self, session: Session) -> None:
        """Somebody has what was taken from it."""
        if session not in self._workers:
            self.server.post(session, UNKNOWN, ())

    def _tell(self, job: Job, name: str, args: tuple[Any, ...]) -> None:
        client: Any = job.client
        try:
            self.server.post(client, name, args)
        except EmitError:
            return  # The client has ended: nobody waits.

    # -- what time and death say -------------------------------------------------------------------------------

    def _ended(self, session: Session) -> None:
        """A client or a worker has ended its session, or was silent for so long that it was forgotten."""
        if session in self._workers:
            del self._workers[session]
            self._bury(session)
        self._jobs.client_lost(session)

    def _end_leases(self, now: float) -> None:
        """A worker is lost when it was silent for a lease, or when its connection has not come back in time."""
        for session, away in list(self._workers.items()):
            if session.peer is not None:
                self._workers[session] = None
            elif away is None:
                self._workers[session] = away = now
            silent = now - session.heard > self._lease
            if silent or (away is not None and now - away > min(RETURN, self._lease)):
                del self._workers[session]
                self._bury(session)

    def _bury(self, session: Session) -> None:
        for job in self._jobs.worker_lost(session):
            error = DeadLetter("remit.errors.DeadLetter", f"{job.attempt} workers died of {job.name!r}")
            client: Any = job.client
            send(self.server.post, client, job.question, told(client.codec, error, "dead"))

    def _tell_the_late(self, now: float) -> None:
        for job in self._jobs.late(now):
            client: Any = job.client
            send(self.server.post, client, job.question, late(client.codec))

    def _assign(self, now: float) -> None:
        for worker, job in self._jobs.assign():
            left = None if job.deadline == FOREVER else max(0, int((job.deadline - now) * 1000))
            session: Any = worker.key
            try:
                self.server.post(session, JOB, (job.token, job.attempt + 1, left, job.codec, job.body))
            except EmitError:
                self._workers.pop(session, None)
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
