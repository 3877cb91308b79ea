"""Simulated jobs: clients that ask a broker, and workers that run what it gives them, as `Worker` does."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, Final

from engine.client import SimulatedClient
from engine.delivery_oracle import Book
from engine.network import Host
from engine.request_oracle import Asker, Inquiry
from engine.virtual_clock import World
from remit._patterns.jobs import Job, WorkerJobs
from remit._patterns.names import JOB, JOB_DONE, JOB_STARTED, SERVER_RESTARTED, WORKER_LEAVE, WORKER_UNKNOWN
from remit._patterns.request_reply import value_reply
from remit.codec import EventMessage, decode_event
from remit.errors import RequestTimeout

__all__ = ["NAMES", "JobClient", "SimulatedWorker"]


NAMES: Final = ("job.a", "job.b")
ALL: Final = ("job.*",), NAMES
"""What a worker may take that takes every job."""
BEATS: Final = 4
"""How often within its lease a worker lets the broker hear of it."""
DEADLY: Final = 41
"""Every such job kills the worker that begins it."""
FAREWELL: Final = 5.0
"""Seconds that a worker that leaves waits for its broker to know."""
EASY: Final = 0.02
"""Seconds that most jobs take on average."""
HARD: Final = 0.01
"""Share of the jobs that take a hundred times as long."""


class JobClient(SimulatedClient):
    """Has jobs done."""

    def __init__(self, world: World, host: Host, book: Book, *, window: int) -> None:
        super().__init__(world, host, book, window=window)
        self.budget = 0
        """Jobs that it has yet to ask for."""
        self.asker = Asker(self, book, self._judge)

    def speak(self, count: int) -> None:
        """Ask for so many jobs."""
        for _ in range(count):
            self.asker.ask(self.world.random.choice(NAMES))

    def check(self) -> None:
        """Look at what must have ended."""
        self.asker.check()

    def successor(self) -> JobClient:
        """Another one asks for what this one has not."""
        heir = JobClient(self.world, self.host, self.book, window=self.window)
        heir.budget, self.budget = self.budget, 0
        return heir

    def _judge(self, inquiry: Inquiry, answer: Any) -> None:
        if answer[0] != inquiry.serial:
            self.world.fail(f"job {inquiry.serial} got the answer of {answer[0]}")

    @property
    def idle(self) -> bool:
        """Whether all was asked and answered."""
        return super().idle and not self.budget


class SimulatedWorker(SimulatedClient):
    """Works: each job takes its time, and some kill it."""

    def __init__(
        self, world: World, host: Host, book: Book, *, window: int, names: tuple[str, ...] | None = None
    ) -> None:
        super().__init__(world, host, book, window=window)
        random = world.random
        self._threads = random.choice((1, 2))
        book.workers += 1
        self._names = (
            random.choice(ALL if book.workers % 2 else (*ALL, NAMES[:1], NAMES[1:])) if names is None else names
        )
        self.working = WorkerJobs(self, lambda: list(self._names), random.choice((2, 4, 16)))
        self.router.io_handlers[JOB] = self._taken
        self.router.register(SERVER_RESTARTED, lambda *_: self.working.on_lease_lost())
        self.router.register(WORKER_UNKNOWN, lambda *_: self.working.on_lease_lost())
        self._running: set[int] = set()
        self._stopping = self._left = False
        self.start()

    def start(self) -> None:
        """Announce itself."""
        self._stopping = self._left = False
        self.working.discard_unstarted()
        self.working.announce().add_done_callback(self._welcomed)

    def stop(self) -> None:
        """Take no more; what runs is finished."""
        self._stopping = True
        self.wake(self.world.now)

    def successor(self) -> SimulatedWorker:
        """Another one takes the same."""
        return SimulatedWorker(self.world, self.host, self.book, window=self.window, names=self._names)

    def _welcomed(self, future: Future[Any]) -> None:
        self.working.lease_s = lease = future.result()
        self.machine.set_heartbeat(lease / BEATS)

    def _taken(self, wire: EventMessage) -> None:
        self.working.on_job(wire)

    def settled(self) -> None:
        """Begin what there are threads for; leave once nothing runs."""
        while (
            not self._stopping
            and len(self._running) < self._threads
            and (job := self.working.wait_for_job(0)) is not None
        ):
            self._begin(job)
        if self._stopping and not self._running and not self._left:
            self._left = True
            self.submit(WORKER_LEAVE, timeout=FAREWELL).add_done_callback(self._ended)

    def _begin(self, job: Job) -> None:
        random = self.world.random
        self._running.add(job.token)
        self.emit(JOB_STARTED, job.token)
        inquiry: Inquiry = self.book.inquiries[decode_event(self.book.codec, job.body).args[0]]
        inquiry.run()
        seconds = random.expovariate(1 / EASY) * (100 if random.random() < HARD else 1)
        self.world.after(seconds, self._finish, job, inquiry.serial)
        if inquiry.serial % DEADLY == 0:
            self.world.after(random.choice((0.0, seconds / 2)), self._die)

    def _finish(self, job: Job, serial: int) -> None:
        if not self.alive:
            return
        if self.world.now < self.stalled_until:
            self.world.at(self.stalled_until, self._finish, job, serial)
            return
        self._running.discard(job.token)
        self.emit(JOB_DONE, job.token, *value_reply(self.book.codec, (serial, job.token)))

    def _die(self) -> None:
        if self.alive:
            self.book.counts["workers killed"] += 1
            self.crash()
            self.book.replace(self)

    def _ended(self, future: Future[Any]) -> None:
        if future.exception() is not None and not isinstance(future.exception(), RequestTimeout | ConnectionError):
            self.world.fail(f"a worker cannot leave: {future.exception()!r}")
        self.working.discard_unstarted()
        self.world.after(self.world.random.random(), self._go)

    def _go(self) -> None:
        if self.alive and self.world.random.random() < 0.5:
            self.start()
        elif self.alive:
            self.leave()
            self.book.replace(self)

    @property
    def idle(self) -> bool:
        """Whether nothing runs."""
        return not self._running
