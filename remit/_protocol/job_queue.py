"""Jobs of a broker: which client submitted each, which worker holds it, and what happens when one of them is lost.

| event                    | waiting job     | assigned job, not started | started job                              |
|--------------------------|-----------------|---------------------------|------------------------------------------|
| `assign`                 | assigned        |                           |                                          |
| `start_job`              |                 | started, attempt + 1      |                                          |
| `finish_job`             | stale (counted) | done                      | done                                     |
| `cancel`, client removed | cancelled       | cancelled                 | result unwanted; not requeued            |
| `expire_jobs`            | late            | late                      | result unwanted; not requeued            |
| worker announces again   |                 | requeued                  | unchanged                                |
| worker retires           |                 | requeued                  | unchanged                                |
| worker lost              |                 | requeued                  | requeued; dead letter after max_attempts |

Delivery is at least once. A result is accepted only from the worker that holds the job. Workers are used least recently
first, as in the Paranoid Pirate pattern (Hintjens).
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable, Collection, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Final

from remit._protocol.deadlines import DeadlineHeap

DEAD_LETTERS_KEPT: Final = 1000


@dataclass(slots=True, eq=False)
class QueuedJob:
    """One request in the broker. Its body stays encoded."""

    client: Hashable
    request_id: int
    """Number that the client gave to the request."""
    name: str
    body: bytes
    codec: str
    deadline: float
    attempt: int = 0
    """Number of workers that have started it."""
    token: int = 0
    """Identifies the present assignment; 0 without one."""
    worker: WorkerSlot | None = None
    started: bool = False
    cancelled: bool = False
    """No client waits for the result: a worker that has started the job finishes it, and it is not requeued."""
    finished: bool = False


@dataclass(slots=True, eq=False)
class WorkerSlot:
    """One worker and the jobs that it holds."""

    key: Hashable
    accepts: Callable[[str], bool]
    capacity: int
    term: int = 0
    """Number of its last announcement. Each job carries the term in which it was assigned."""
    retiring: bool = False
    jobs: dict[int, QueuedJob] = field(default_factory=dict)

    @property
    def has_capacity(self) -> bool:
        """Whether the worker accepts another job."""
        return not self.retiring and len(self.jobs) < self.capacity


class FairQueue:
    """Waiting jobs by name. The clients of one name take turns; the jobs of one client keep their order."""

    def __init__(self) -> None:
        self._names: dict[str, dict[Hashable, deque[QueuedJob]]] = {}

    def __contains__(self, name: str) -> bool:
        """Return whether a job of this name waits."""
        return name in self._names

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the waiting jobs."""
        return tuple(self._names)

    def clients_waiting(self, name: str) -> Collection[Hashable]:
        """Return the clients with waiting jobs of this name, in the order of their turns."""
        return self._names.get(name, {}).keys()

    def append(self, job: QueuedJob) -> None:
        """Add a job behind all others of its client."""
        self._jobs_like(job).append(job)

    def requeue(self, job: QueuedJob) -> None:
        """Add a job before all others of its client."""
        self._jobs_like(job).appendleft(job)

    def pop_next(self, name: str) -> QueuedJob:
        """Remove and return the first job of the client whose turn it is; the next turn of that client comes last."""
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
        """Remove a job."""
        clients = self._names.get(job.name, {})
        jobs = clients.get(job.client)
        if jobs is None:
            return
        jobs.remove(job)
        if not jobs:
            del clients[job.client]
        if not clients:
            del self._names[job.name]

    def _jobs_like(self, job: QueuedJob) -> deque[QueuedJob]:
        return self._names.setdefault(job.name, {}).setdefault(job.client, deque())


class JobQueue:
    """The pure core of a broker. Clients and workers are opaque keys.

    ``first`` is the first token. It is drawn at random, so that a restarted broker does not reuse a token that a worker
    still holds from its predecessor.
    """

    def __init__(self, *, max_attempts: int, queue: int, first: int = 1) -> None:
        self.counts: Counter[str] = Counter()
        self.dead: deque[QueuedJob] = deque(maxlen=DEAD_LETTERS_KEPT)
        """The last dead letters."""
        self._max_attempts = max_attempts
        self._limit = queue
        self._waiting = FairQueue()
        self._by_request: dict[tuple[Hashable, int], QueuedJob] = {}
        self._assigned: dict[int, QueuedJob] = {}
        self._workers: dict[Hashable, WorkerSlot] = {}
        self._idle: dict[WorkerSlot, None] = {}
        """Workers that accept a job, least recently used first."""
        self._tokens = itertools.count(first)
        self._deadlines: DeadlineHeap[QueuedJob] = DeadlineHeap(lambda job: not job.finished)

    def __len__(self) -> int:
        """Return the number of jobs, waiting or assigned."""
        return len(self._by_request)

    @property
    def waiting(self) -> int:
        """Number of jobs that are not assigned."""
        return len(self._by_request) - len(self._assigned)

    @property
    def workers(self) -> tuple[WorkerSlot, ...]:
        """The registered workers."""
        return tuple(self._workers.values())

    def clients_waiting(self, name: str) -> Collection[Hashable]:
        """Return the clients with waiting jobs of this name, in the order of their turns."""
        return self._waiting.clients_waiting(name)

    def assigned_job(self, token: int) -> QueuedJob | None:
        """Return the job of an assignment, or None."""
        return self._assigned.get(token)

    # -- clients -----------------------------------------------------------------------------------------------

    def submit(self, job: QueuedJob) -> bool:
        """Queue a job; return False if the queue is full or the client has submitted this request before."""
        key = job.client, job.request_id
        if len(self._by_request) >= self._limit or key in self._by_request:
            self.counts["refused"] += 1
            return False
        self._by_request[key] = job
        self._waiting.append(job)
        if job.deadline != float("inf"):
            self._deadlines.schedule(job.deadline, job)
        self.counts["submitted"] += 1
        return True

    def cancel(self, client: Hashable, request_id: int) -> None:
        """Cancel a job: it is removed unless a worker has started it."""
        job = self._by_request.get((client, request_id))
        if job is not None:
            self._cancel_job(job)

    def remove_client(self, client: Hashable) -> None:
        """Cancel all jobs of a client that has ended."""
        for key, job in list(self._by_request.items()):
            if key[0] == client:
                self._cancel_job(job)

    def expire_jobs(self, now: float) -> list[QueuedJob]:
        """Remove and return the jobs whose deadline has passed before a worker started them."""
        expired = []
        for job in self._deadlines.pop_due(now):
            job.cancelled = True
            if not job.started:
                self.counts["late"] += 1
                self._remove_job(job)
                expired.append(job)
        return expired

    # -- workers -----------------------------------------------------------------------------------------------

    def register_worker(self, key: Hashable, accepts: Callable[[str], bool], capacity: int, term: int = 0) -> None:
        """Add a worker, or update one that announces itself again: jobs that it has not started are requeued.

        An announcement of an earlier ``term`` is out of order and ignored.
        """
        worker = self._workers.get(key)
        if worker is None:
            worker = self._workers[key] = WorkerSlot(key, accepts, capacity, term)
        elif term < worker.term:
            return
        self._requeue_unstarted(worker)
        worker.accepts, worker.capacity, worker.term, worker.retiring = accepts, capacity, term, False
        self._update_idle(worker)

    def start_job(self, key: Hashable, token: int) -> bool:
        """Note that a worker has started a job, which counts as an attempt. Return False if it does not hold it."""
        job = self._job_held_by(key, token)
        if job is None:
            return False
        if not job.started:
            job.started = True
            job.attempt += 1
        return True

    def finish_job(self, key: Hashable, token: int) -> QueuedJob | None:
        """Remove and return a job that a worker has finished, or count a stale result and return None."""
        job = self._job_held_by(key, token)
        if job is None:
            self.counts["stale"] += 1
            return None
        self.counts["done"] += 1
        self._remove_job(job)
        return job

    def retire_worker(self, key: Hashable) -> None:
        """Assign no more jobs to a worker, and requeue those that it has not started."""
        worker = self._workers.get(key)
        if worker is not None:
            worker.retiring = True
            self._idle.pop(worker, None)
            self._requeue_unstarted(worker)

    def remove_worker(self, key: Hashable) -> list[QueuedJob]:
        """Remove a lost worker and requeue its jobs. Remove and return those that have used up their attempts."""
        worker = self._workers.pop(key, None)
        if worker is None:
            return []
        self._idle.pop(worker, None)
        worker.retiring = True
        self._count_unreported_start(worker)
        dead = []
        # Each job is put before the others of its client: the last one first restores their order.
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

    def assign(self) -> Iterator[tuple[WorkerSlot, QueuedJob]]:
        """Assign waiting jobs to idle workers; yield each assignment."""
        for name in self._waiting.names:
            while name in self._waiting:
                worker = next((each for each in self._idle if each.accepts(name)), None)
                if worker is None:
                    break
                yield worker, self._assign_job(self._waiting.pop_next(name), worker)

    # -- inside ------------------------------------------------------------------------------------------------

    def _count_unreported_start(self, worker: WorkerSlot) -> None:
        """Count an attempt for the first job of a lost worker if it has reported no start.

        A job that kills its worker immediately leaves no time for the report, and would be requeued without end.
        """
        jobs = list(worker.jobs.values())
        if jobs and not any(job.started for job in jobs):
            jobs[0].attempt += 1

    def _assign_job(self, job: QueuedJob, worker: WorkerSlot) -> QueuedJob:
        job.token, job.worker, job.started = next(self._tokens), worker, False
        self._assigned[job.token] = worker.jobs[job.token] = job
        self._idle.pop(worker, None)  # It goes to the end of the order.
        self._update_idle(worker)
        return job

    def _update_idle(self, worker: WorkerSlot) -> None:
        if worker.has_capacity:
            self._idle.setdefault(worker)
        else:
            self._idle.pop(worker, None)

    def _job_held_by(self, key: Hashable, token: int) -> QueuedJob | None:
        job = self._assigned.get(token)
        return job if job is not None and job.worker is not None and job.worker.key == key else None

    def _release_job(self, job: QueuedJob) -> None:
        """End the assignment of a job."""
        if job.worker is not None:
            del self._assigned[job.token], job.worker.jobs[job.token]
            self._update_idle(job.worker)
            job.token, job.worker = 0, None

    def _requeue_unstarted(self, worker: WorkerSlot) -> None:
        for job in reversed([job for job in worker.jobs.values() if not job.started]):
            self._requeue(job)

    def _requeue(self, job: QueuedJob) -> None:
        self._release_job(job)
        job.started = False
        self._waiting.requeue(job)

    def _cancel_job(self, job: QueuedJob) -> None:
        job.cancelled = True
        if not job.started:
            self.counts["cancelled"] += 1
            self._remove_job(job)

    def _remove_job(self, job: QueuedJob) -> None:
        job.finished = True
        self._by_request.pop((job.client, job.request_id), None)
        if job.worker is None:
            self._waiting.remove(job)
        else:
            self._release_job(job)
        # The heap holds removed jobs, their bodies included, until their deadlines, which may be hours away.
        self._deadlines.compact(len(self._by_request))
