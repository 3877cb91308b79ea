"""Simulated broker: the real broker's side of jobs, with a `Rota` that hears all that is said to it and by it."""

from __future__ import annotations

from typing import Any, Final

from engine.delivery_oracle import Book
from engine.job_actors import NAMES
from engine.job_oracle import Rota
from engine.network import Host
from engine.server import SimulatedServer
from engine.virtual_clock import World
from remit._patterns.jobs import SWEEP_INTERVAL_S, BrokerCore
from remit._patterns.names import JOB, JOB_STARTED, REPLY, REQUEST, WORKER_LEAVE, WORKER_READY
from remit._patterns.request_reply import session_of
from remit._protocol.leases import RECONNECT_GRACE_S
from remit._protocol.session import Session
from remit.codec import EventMessage, decode_event
from remit.event import Sender

__all__ = ["SimulatedBroker"]


DRAINS: Final = 0.5
"""Share of the brokers that take no more in the end."""


class SimulatedBroker(SimulatedServer):
    """A broker."""

    look = SWEEP_INTERVAL_S

    def __init__(self, world: World, host: Host, book: Book, *, limit: int, window: int, ttl: float) -> None:
        super().__init__(world, host, book, limit=limit, window=window, ttl=ttl)
        self.brokering = BrokerCore(
            self.router,
            self.answering,
            self.post,
            lease=book.lease,
            max_attempts=book.max_attempts,
            queue=65_536,
            clock=world.clock,
        )
        self._rota = Rota(world, book.max_attempts)
        router = self.router
        router.session_closed.append(self._ended)
        router.request_cancelled.append(self._cancelled)
        self._ready, self._leave = (router.request_handlers[name] for name in (WORKER_READY, WORKER_LEAVE))
        router.request_handlers[WORKER_READY] = self._announced
        router.request_handlers[WORKER_LEAVE] = self._left
        (self._ask,), (self._begin,) = router.handlers[REQUEST], router.handlers[JOB_STARTED]
        router.register(REQUEST, self._asked, replace=True)
        router.register(JOB_STARTED, self._begun, replace=True)

    # -- what it is told ---------------------------------------------------------------------------------------

    def _asked(self, wire: EventMessage, sender: Sender | None, redelivered: bool) -> None:
        for name in NAMES:
            self._rota.waits(name, session_of(sender), self.brokering.jobs.fair_queue.by_name.get(name, {}))
        self._ask(wire, sender, redelivered)

    def _begun(self, wire: EventMessage, sender: Sender | None, redelivered: bool) -> None:
        self._rota.begun(session_of(sender), wire.args[0])
        self._begin(wire, sender, redelivered)

    def _announced(self, session: Session, names: list[str], capacity: int, term: int, *_: object) -> Any:
        answer = self._ready(session, names, capacity, term)
        self._rota.announced(session, names, capacity)
        return answer

    def _left(self, session: Session) -> Any:
        self._rota.left(session)
        return self._leave(session)

    def _cancelled(self, session: Session, question: int) -> None:
        self._rota.dropped([(session, question)])

    def _ended(self, session: Session) -> None:
        self._look()
        self._rota.dropped(self._rota.of(session))

    # -- what it does ------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Let leases end, and give jobs; then nobody may be idle for whom something waits."""
        self.brokering.advance(self.pump.drained_at)
        self._look()

    def post(self, session: Session, name: str, args: tuple[Any, ...]) -> None:
        """Send an event to a client or a worker."""
        if name == JOB:
            self._look()
            self._give(session, *args)
        elif name == REPLY:
            question, outcome, sealed = args
            self._look()
            if session not in self._rota:
                answer = decode_event(self.book.codec, sealed).args[0] if outcome == "done" else None
                self._rota.answered((session, question), outcome, answer)
        super().post(session, name, args)

    def _give(
        self, session: Session, token: int, attempt: int, left: int | None, codec: str, sealed: bytes, _: int
    ) -> None:
        job = self.brokering.jobs.job_held_by(session, token)
        wire = decode_event(self.book.codec, sealed)
        if job is None:
            self.world.fail(f"job {wire.args[0]} is given away under a token that means nothing")
        self._rota.turn(job.name, job.client, self.brokering.jobs.fair_queue.by_name.get(job.name, {}))
        self._rota.given(session, (job.client, job.request_id), token, attempt, self.book.inquiries[wire.args[0]])
        self.book.counts["jobs given"] += 1

    def _look(self) -> None:
        """Look who is taken for dead, and whether rightly so."""
        now = self.world.now
        for session in self._rota:
            if session in self.brokering.jobs.workers:
                continue
            silent, lease = now - session.last_received_at, self.book.lease
            bound = lease if session.peer is not None else min(RECONNECT_GRACE_S, lease)
            if self._has(session) and silent <= bound:
                self.world.fail(f"worker {session.id.hex()[:8]} is given up {silent} s after it was heard")
            self._rota.gone(session)

    def check(self) -> None:
        """Look whether anybody waits for nothing."""
        super().check()
        if self.world.now < max(self.deaf_until, self.stalled_until):
            return
        for name in NAMES:
            idle = self._rota.idle(name)
            if idle is not None and len(self.brokering.jobs.fair_queue.by_name.get(name, {})):
                self.world.fail(f"{name} waits, and worker {idle.id.hex()[:8]} waits for it")

    def calm(self) -> None:
        """Drain, perhaps."""
        if self.world.random.random() < DRAINS:
            self.brokering.draining = self.book.refusing = True

    def busy(self, sessions: set[bytes]) -> list[str]:
        """Say what is here still."""
        left = len(self.brokering.jobs)
        return super().busy(sessions) + ([f"{self} has {left} jobs"] if left else [])
