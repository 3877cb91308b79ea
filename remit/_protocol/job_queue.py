"""Jobs: what a broker holds: who asked, who works, who has what in hand, and what becomes of it when somebody dies.

At least once: a job is given to another worker when the one that had it is lost. An attempt counts once its worker has
said that it began, or died with it first in hand; a result is taken only from the worker that holds the job. Workers
are used least recently first, as in the Paranoid Pirate pattern.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, deque
from collections.abc import Callable, Collection, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Final

__all__ = ["FairQueue", "JobQueue", "QueuedJob", "WorkerSlot"]


@dataclass(slots=True, eq=False)
class QueuedJob:
    """One request on its way through the broker. The body stays sealed."""

    client: Hashable
    request_id: int
    """The client's own number of it."""
    name: str
    body: bytes
    codec: str
    deadline: float
    attempt: int = 0
    """How many workers have begun it."""
    token: int = 0
    """Names this assignment; 0 while nobody has it in hand."""
    worker: WorkerSlot | None = None
    started: bool = False
    cancelled: bool = False
    """Nobody waits for it any more: whoever has begun it finishes it, and nobody else does it."""
    finished: bool = False


@dataclass(slots=True, eq=False)
class WorkerSlot:
    """Somebody who takes jobs: which, and how many at once."""

    key: Hashable
    accepts: Callable[[str], bool]
    capacity: int
    term: int = 0
    """Which of its announcements holds: what it is given carries this number."""
    retiring: bool = False
    jobs: dict[int, QueuedJob] = field(default_factory=dict)

    @property
    def has_capacity(self) -> bool:
        """Whether it takes one more."""
        return not self.retiring and len(self.jobs) < self.capacity


class FairQueue:
    """For each name the clients whose jobs wait, in the order of their turns, and the jobs of each in their own."""

    def __init__(self) -> None:
        self._names: dict[str, dict[Hashable, deque[QueuedJob]]] = {}

    def __contains__(self, name: str) -> bool:
        """Whether a job of this name waits."""
        return name in self._names

    @property
    def names(self) -> tuple[str, ...]:
        """What is waited for."""
        return tuple(self._names)

    def clients_waiting(self, name: str) -> Collection[Hashable]:
        """Return the clients whose jobs of this name wait, in the order of their turns."""
        return self._names.get(name, {}).keys()

    def append(self, job: QueuedJob) -> None:
        """Let a job wait, behind all others of its client."""
        self._line(job).append(job)

    def requeue(self, job: QueuedJob) -> None:
        """Let a job wait again, before all others of its client."""
        self._line(job).appendleft(job)

    def pop_next(self, name: str) -> QueuedJob:
        """Take the next job of the client whose turn it is; that client comes last now."""
        clients = self._names[name]
        client = next(iter(clients))
        jobs = clients.pop(client)
        job = jobs.popleft()
        if jobs:
            clients[client] = jobs
        elif not clients:
            del self._names[name]
        return job

    def remove(self, job: QueuedJob) -> None:
        """Let a job wait no longer."""
        clients = self._names.get(job.name, {})
        jobs = clients.get(job.client)
        if jobs is None:
            return
        jobs.remove(job)
        if not jobs:
            del clients[job.client]
        if not clients:
            del self._names[job.name]

    def _line(self, job: QueuedJob) -> deque[QueuedJob]:
        return self._names.setdefault(job.name, {}).setdefault(job.client, deque())


SPARE: Final = 64
"""Deadlines of jobs that are over which are not worth being looked for."""


class JobQueue:
    """The pure part of a broker: fed with what clients and workers say; `assign` tells who gets what.

    ``first`` is the first token: no other broker that the same workers may meet should ever give the same.
    """

    def __init__(self, *, max_attempts: int, queue: int, first: int = 1) -> None:
        self.counts: Counter[str] = Counter()
        self.dead: deque[QueuedJob] = deque(maxlen=1000)
        """The last dead letters."""
        self._max_attempts = max_attempts
        self._limit = queue
        self._waiting = FairQueue()
        self._by_question: dict[tuple[Hashable, int], QueuedJob] = {}
        self._in_hand: dict[int, QueuedJob] = {}
        self._workers: dict[Hashable, WorkerSlot] = {}
        self._idle: dict[WorkerSlot, None] = {}
        self._tokens = itertools.count(first)
        self._deadlines: list[tuple[float, int, QueuedJob]] = []
        self._serial = itertools.count()

    def __len__(self) -> int:
        """How many jobs there are, waiting or in hand."""
        return len(self._by_question)

    @property
    def waiting(self) -> int:
        """How many jobs nobody has in hand."""
        return len(self._by_question) - len(self._in_hand)

    def askers(self, name: str) -> Collection[Hashable]:
        """Return the clients whose jobs of this name wait, in the order of their turns."""
        return self._waiting.clients_waiting(name)

    @property
    def workers(self) -> tuple[WorkerSlot, ...]:
        """Those who are there."""
        return tuple(self._workers.values())

    def assigned_job(self, token: int) -> QueuedJob | None:
        """Return a job that somebody has in hand."""
        return self._in_hand.get(token)

    # -- clients -----------------------------------------------------------------------------------------------

    def submit(self, job: QueuedJob) -> bool:
        """Take a job; False if there is no room, or if that client has asked the same already."""
        key = job.client, job.request_id
        if len(self._by_question) >= self._limit or key in self._by_question:
            self.counts["refused"] += 1
            return False
        self._by_question[key] = job
        self._waiting.append(job)
        if job.deadline != float("inf"):
            heapq.heappush(self._deadlines, (job.deadline, next(self._serial), job))
        self.counts["submitted"] += 1
        return True

    def cancel(self, client: Hashable, question: int) -> None:
        """Nobody waits for it any more: drop it unless a worker has begun it."""
        job = self._by_question.get((client, question))
        if job is not None:
            self._cancel_job(job)

    def remove_client(self, client: Hashable) -> None:
        """A client has ended: what nobody has begun need not be done."""
        for key, job in list(self._by_question.items()):
            if key[0] == client:
                self._cancel_job(job)

    def expire_jobs(self, now: float) -> list[QueuedJob]:
        """End and return the jobs whose deadline has passed before anybody began them."""
        late = []
        while self._deadlines and self._deadlines[0][0] <= now:
            job = heapq.heappop(self._deadlines)[2]
            job.cancelled = True
            if not job.finished and not job.started:
                self.counts["late"] += 1
                self._remove_job(job)
                late.append(job)
        return late

    # -- workers -----------------------------------------------------------------------------------------------

    def register_worker(self, key: Hashable, takes: Callable[[str], bool], capacity: int, term: int = 0) -> None:
        """A worker is there, or says anew what it takes: then it has nothing in hand but what it has begun.

        What is given to it from now on carries its ``term``; an announcement of an earlier one comes too late.
        """
        worker = self._workers.get(key)
        if worker is None:
            worker = self._workers[key] = WorkerSlot(key, takes, capacity, term)
        elif term < worker.term:
            return
        self._requeue_unstarted(worker)
        worker.accepts, worker.capacity, worker.term, worker.retiring = takes, capacity, term, False
        self._update_idle(worker)

    def start_job(self, key: Hashable, token: int) -> bool:
        """A worker begins a job: an attempt that counts. False if it does not hold it."""
        job = self._job_held_by(key, token)
        if job is None:
            return False
        if not job.started:
            job.started = True
            job.attempt += 1
        return True

    def finish_job(self, key: Hashable, token: int) -> QueuedJob | None:
        """A worker has finished a job: end it and return it. None, and counted, if it does not hold it."""
        job = self._job_held_by(key, token)
        if job is None:
            self.counts["stale"] += 1
            return None
        self.counts["done"] += 1
        self._remove_job(job)
        return job

    def retire_worker(self, key: Hashable) -> None:
        """A worker takes no more, and has not begun what it holds beyond the jobs it has begun."""
        worker = self._workers.get(key)
        if worker is not None:
            worker.retiring = True
            self._idle.pop(worker, None)
            self._requeue_unstarted(worker)

    def remove_worker(self, key: Hashable) -> list[QueuedJob]:
        """A worker is gone: its jobs go to others. End and return those that were begun too often."""
        worker = self._workers.pop(key, None)
        if worker is None:
            return []
        self._idle.pop(worker, None)
        worker.retiring = True
        self._count_unreported_start(worker)
        dead = []
        for job in reversed(list(worker.jobs.values())):
            if job.cancelled:
                self.counts["cancelled"] += 1
                self._remove_job(job)
            elif job.attempt >= self._max_attempts:
                self.counts["dead"] += 1
                self.dead.append(job)
                self._remove_job(job)
                dead.append(job)
            else:
                self.counts["requeued"] += 1
                self._requeue(job)
        return dead

    def _count_unreported_start(self, worker: WorkerSlot) -> None:
        """Count an attempt for the job that came first, if none was begun as far as is known.

        A job that kills its worker at once leaves no time to say that it was begun: it must not go round for ever.
        """
        hand = list(worker.jobs.values())
        if hand and not any(job.started for job in hand):
            hand[0].attempt += 1

    def assign(self) -> Iterator[tuple[WorkerSlot, QueuedJob]]:
        """Give waiting jobs to idle workers; yield who got what."""
        for name in self._waiting.names:
            while name in self._waiting:
                worker = next((each for each in self._idle if each.accepts(name)), None)
                if worker is None:
                    break
                yield worker, self._assign_job(self._waiting.pop_next(name), worker)

    # -- inside ------------------------------------------------------------------------------------------------

    def _assign_job(self, job: QueuedJob, worker: WorkerSlot) -> QueuedJob:
        job.token, job.worker, job.started = next(self._tokens), worker, False
        self._in_hand[job.token] = worker.jobs[job.token] = job
        self._idle.pop(worker, None)
        self._update_idle(worker)
        return job

    def _update_idle(self, worker: WorkerSlot) -> None:
        """Note whether a worker takes one more. It comes last: it was used most recently."""
        if worker.has_capacity:
            self._idle.setdefault(worker)
        else:
            self._idle.pop(worker, None)

    def _job_held_by(self, key: Hashable, token: int) -> QueuedJob | None:
        job = self._in_hand.get(token)
        return job if job is not None and job.worker is not None and job.worker.key == key else None

    def _release(self, job: QueuedJob) -> None:
        """Take a job out of its worker's hand."""
        if job.worker is not None:
            del self._in_hand[job.token], job.worker.jobs[job.token]
            self._update_idle(job.worker)
            job.token, job.worker = 0, None

    def _requeue_unstarted(self, worker: WorkerSlot) -> None:
        """Let wait again what a worker has not begun."""
        for job in reversed([job for job in worker.jobs.values() if not job.started]):
            self._requeue(job)

    def _cancel_job(self, job: QueuedJob) -> None:
        job.cancelled = True
        if not job.started:
            self.counts["cancelled"] += 1
            self._remove_job(job)

    def _requeue(self, job: QueuedJob) -> None:
        """Let a job wait again, before all others of its client."""
        self._release(job)
        job.started = False
        self._waiting.requeue(job)

    def _remove_job(self, job: QueuedJob) -> None:
        job.finished = True
        self._by_question.pop((job.client, job.request_id), None)
        if job.worker is None:
            self._waiting.remove(job)
        else:
            self._release(job)
        if len(self._deadlines) > 2 * len(self._by_question) + SPARE:
            # A deadline may be hours away: what a job that is over brought along must not be kept until then.
            self._deadlines = [each for each in self._deadlines if not each[2].finished]
            heapq.heapify(self._deadlines)
