"""Jobs of a broker: which client submitted each, which worker holds it, and what happens when one of them is lost.

| event                    | waiting job     | assigned job, not started | started job                              |
|--------------------------|-----------------|---------------------------|------------------------------------------|
| `assign`                 | assigned        |                           |                                          |
| `start_job`              |                 | started, attempt + 1      |                                          |
| `finish_job`             |                 | done                      | done                                     |
| `finish_job`, old holder | done            | done                      | done                                     |
| `cancel`, client removed | cancelled       | cancelled                 | result unwanted; not requeued            |
| `expire_jobs`            | late            | late                      | result unwanted; not requeued            |
| worker announces again   |                 | requeued                  | unchanged if it still runs, else as lost |
| worker retires           |                 | requeued                  | unchanged if it still runs, else as lost |
| worker lost              |                 | requeued                  | requeued; dead letter after max_attempts |

Delivery is at least once. The first result is accepted, also from a worker that has lost the job; later ones are stale.
Workers are used least recently first, as in the Paranoid Pirate pattern (Hintjens).
"""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from remit._protocol.deadlines import DeadlineHeap

NAMES_KEPT: Final = 4096
"""Names in the cache of `JobQueue.accepts`."""
DEAD_LETTERS_KEPT: Final = 1000
DEAD_LETTER_BYTES: Final = 64 * 1024 * 1024
"""Most bytes of the dead letters that are kept."""
JOB_BYTES: Final = 256 * 1024 * 1024
"""Default of the most bytes of all jobs in a broker."""


@dataclass(slots=True, eq=False)
class QueuedJob:
    """One request in the broker. Its body stays encoded."""

    client: Any
    request_id: int
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
    posted: bool = False
    """Whether the assignment was sent to the worker."""
    cancelled: bool = False
    """No client waits for the result: a worker that has started the job finishes it, and it is not requeued."""
    finished: bool = False
    noted: bool = False
    """Whether the client knows that no worker has registered the name."""
    former: dict[int, Any] = field(default_factory=dict)
    """Earlier assignments: token, and key of the worker."""


@dataclass(slots=True, eq=False)
class WorkerSlot:
    """One worker and the jobs that it holds."""

    key: Any
    accepts: Callable[[str], bool]
    capacity: int
    term: int = 0
    """Number of its last announcement. Each job carries the term in which it was assigned."""
    retiring: bool = False
    jobs: dict[int, QueuedJob] = field(default_factory=dict)
    names: OrderedDict[str, None] = field(default_factory=OrderedDict)
    """Names of waiting jobs that it accepts, longest waiting first, unless they are still in `JobQueue._untried`."""

    @property
    def has_capacity(self) -> bool:
        """Whether the worker accepts another job."""
        return not self.retiring and len(self.jobs) < self.capacity


class FairQueue:
    """Waiting jobs by name. The clients of one name take turns; the jobs of one client keep their order."""

    def __init__(self) -> None:
        # Ordered dictionaries: a plain one needs longer to find its first key the more keys were removed before it, and
        # a deque to remove a job from its middle.
        self.by_name: dict[str, OrderedDict[Hashable, OrderedDict[QueuedJob, None]]] = {}
        """Jobs by name and client, with the clients in the order of their turns."""

    def add(self, job: QueuedJob, *, first: bool = False) -> None:
        """Add a job behind all others of its client, or before them."""
        jobs = self.by_name.setdefault(job.name, OrderedDict()).setdefault(job.client, OrderedDict())
        jobs[job] = None
        if first:
            jobs.move_to_end(job, last=False)

    def pop_next(self, name: str) -> QueuedJob:
        """Remove and return the first job of the client whose turn it is; the next turn of that client comes last."""
        clients = self.by_name[name]
        client, jobs = next(iter(clients.items()))
        job = next(iter(jobs))
        self.remove(job)
        if jobs:
            clients.move_to_end(client)
        return job

    def remove(self, job: QueuedJob) -> None:
        """Remove a job."""
        clients = self.by_name[job.name]
        jobs = clients[job.client]
        del jobs[job]
        # Empty queues are deleted: clients come and go, and each would leave one for each name that it has used.
        if not jobs:
            del clients[job.client]
        if not clients:
            del self.by_name[job.name]


class JobQueue:
    """The pure core of a broker. Clients and workers are opaque keys; tokens count up from ``first``."""

    def __init__(self, *, max_attempts: int, queue: int, queue_bytes: int = JOB_BYTES, first: int = 1) -> None:
        self.counts: Counter[str] = Counter()
        self.dead: deque[QueuedJob] = deque()
        self._dead_bytes = 0
        self._max_attempts = max_attempts
        self._limit = queue
        self._limit_bytes = queue_bytes
        self.bytes = 0
        """Bytes of the bodies of all jobs."""
        self.fair_queue = FairQueue()
        self._length = 0
        self._by_client: dict[Hashable, dict[int, QueuedJob]] = {}
        """Jobs by client and request."""
        self._assigned: dict[int, QueuedJob] = {}
        self._former: dict[int, QueuedJob] = {}
        """Unfinished jobs by the tokens of their earlier assignments."""
        self.workers: dict[Hashable, WorkerSlot] = {}
        self._idle: dict[WorkerSlot, None] = {}
        """Workers that accept a job, least recently used first."""
        self._accepts: dict[str, bool] = {}
        """Cache of `accepts`, cleared with each change of a worker."""
        self._untried: OrderedDict[str, None] = OrderedDict()
        """Names that wait for the first time since `assign`. Any others are in `names` of each worker that accepts."""
        self._unposted: list[QueuedJob] = []
        """Assigned jobs that were perhaps not sent to their workers, because of an interrupt."""
        self._tokens = itertools.count(first)
        self._deadlines: DeadlineHeap[QueuedJob] = DeadlineHeap(lambda job: not job.finished)

    def __len__(self) -> int:
        return self._length

    @property
    def waiting(self) -> int:
        """Number of jobs that are not assigned."""
        return self._length - len(self._assigned)

    def job_held_by(self, key: Hashable, token: int) -> QueuedJob | None:
        """Return the job of an assignment, or None if this worker does not hold it."""
        job = self._assigned.get(token)
        return job if job is not None and job.worker is not None and job.worker.key == key else None

    def accepts(self, name: str) -> bool:
        """Return whether a registered worker accepts jobs of this name."""
        if name not in self._accepts:
            if len(self._accepts) >= NAMES_KEPT:
                self._accepts.clear()
            self._accepts[name] = any(each.accepts(name) for each in list(self.workers.values()) if not each.retiring)
        return self._accepts[name]

    def submit(self, job: QueuedJob) -> bool:
        """Queue a job; return False if the queue is full. A second job of the same request is ignored."""
        if job.request_id in self._by_client.get(job.client, ()):
            return True
        if self._length and (self._length >= self._limit or self.bytes + len(job.body) > self._limit_bytes):
            self.counts["refused"] += 1
            return False
        self._by_client.setdefault(job.client, {})[job.request_id] = job
        self._length += 1
        self.bytes += len(job.body)
        self._add_waiting(job)
        if job.deadline != float("inf"):
            self._deadlines.schedule(job.deadline, job)
        self.counts["submitted"] += 1
        return True

    def cancel(self, client: Hashable, request_id: int) -> None:
        """Cancel a job: it is removed unless a worker has started it."""
        job = self._by_client.get(client, {}).get(request_id)
        if job is not None:
            self._cancel_job(job)

    def remove_client(self, client: Hashable) -> None:
        """Cancel all jobs of a client that has ended."""
        for job in tuple(self._by_client.get(client, {}).values()):
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

    def register_worker(
        self,
        key: Hashable,
        accepts: Callable[[str], bool],
        capacity: int,
        term: int = 0,
        running: Collection[int] | None = None,
    ) -> list[QueuedJob]:
        """Add a worker, or update one that announces itself again: jobs that it has not started are requeued.

        Jobs that it has started and that are not among the tokens ``running``, if given, were given up by it. Remove
        and return those that have used up their attempts.
        """
        worker = self.workers.setdefault(key, WorkerSlot(key, accepts, capacity, term))
        if term < worker.term:  # The announcement was overtaken by a later one.
            return []
        self._requeue_unstarted(worker)
        dead = [] if running is None else self._requeue_started(worker, running)
        worker.accepts, worker.capacity, worker.term, worker.retiring = accepts, capacity, term, False
        self._accepts.clear()
        by_name = self.fair_queue.by_name
        worker.names = OrderedDict.fromkeys(name for name in by_name if name not in self._untried and accepts(name))
        self._update_idle(worker)
        return dead

    def start_job(self, key: Hashable, token: int) -> bool:
        """Note that a worker has started a job, which counts as an attempt. Return False if it does not hold it."""
        job = self.job_held_by(key, token)
        if job is None:
            return False
        if not job.started:
            job.started, job.attempt = True, job.attempt + 1
        return True

    def finish_job(self, job: QueuedJob) -> None:
        """Remove a job that a worker has finished."""
        if not job.finished:
            self.counts["done"] += 1
            self._remove_job(job)

    def job_finished_by(self, key: Hashable, token: int) -> QueuedJob | None:
        """Return the unfinished job that a worker holds or has held under a token, or None."""
        job = self.job_held_by(key, token)
        if job is None:
            job = self._former.get(token)
            if job is not None and job.former.get(token) != key:
                return None
        return job

    def retire_worker(self, key: Hashable, running: Collection[int] | None = None) -> list[QueuedJob]:
        """Assign no more jobs to a worker, and requeue those that it has not started, or given up as above.

        Remove and return the jobs that have used up their attempts.
        """
        worker = self.workers.get(key)
        if worker is None:
            return []
        worker.retiring = True
        self._accepts.clear()
        self._update_idle(worker)
        self._requeue_unstarted(worker)
        return [] if running is None else self._requeue_started(worker, running)

    def remove_worker(self, key: Hashable) -> list[QueuedJob]:
        """Remove a lost worker and requeue its jobs. Remove and return those that have used up their attempts."""
        worker = self.workers.get(key)
        if worker is None:
            return []
        worker.retiring = True
        self._accepts.clear()
        self._update_idle(worker)
        # A job that kills its worker immediately leaves no time for the report of its start. It counts as started,
        # or it would be requeued without end.
        jobs = list(worker.jobs.values())
        if jobs and not any(job.started for job in jobs):
            jobs[0].attempt += 1
        for job in jobs:
            job.started = True
        dead = self._requeue_started(worker, ())
        self.workers.pop(key, None)  # Last: after an interrupt the worker is found here, and removed again.
        return dead

    def assign(self) -> Iterator[tuple[WorkerSlot, QueuedJob]]:
        """Assign waiting jobs to idle workers; yield each assignment, which the caller sends and marks as posted."""
        while self._unposted:
            job = self._unposted[-1]
            if job.worker is not None and not job.posted:
                yield job.worker, job
            self._unposted.pop()
        # Names that have waited longer come first. No call looks at them all: there may be many.
        by_name, untried = self.fair_queue.by_name, self._untried
        while len(by_name) > len(untried) and (worker := next((each for each in self._idle if each.names), None)):
            yield worker, self._assign_job(next(iter(worker.names)), worker)
        while untried:
            name = next(iter(untried))
            while name in untried and (worker := next((each for each in self._idle if each.accepts(name)), None)):
                yield worker, self._assign_job(name, worker)
            if untried.pop(name, name) is None:
                for worker in filter(lambda each: each.accepts(name), self.workers.values()):
                    worker.names[name] = None

    def repair(self) -> None:
        """Rebuild what is derived from the unfinished jobs, after an interrupt in the middle of a change."""
        # A change is committed by one assignment to `_by_client`, `workers`, or the fields of one job.
        jobs = [job for each in self._by_client.values() for job in each.values() if not job.finished]
        self._by_client = {}
        for job in jobs:
            self._by_client.setdefault(job.client, {})[job.request_id] = job
        self._length, self.bytes = len(jobs), sum(len(job.body) for job in jobs)
        self.fair_queue, self._assigned, self._former = FairQueue(), {}, {}
        self._deadlines = DeadlineHeap(lambda job: not job.finished)
        self._untried = OrderedDict()
        for worker in self.workers.values():
            worker.jobs, worker.names = {}, OrderedDict()
        for job in jobs:
            self._former.update(dict.fromkeys(job.former, job))
            if job.worker is None:
                self._add_waiting(job)
            else:
                self._assigned[job.token] = job.worker.jobs[job.token] = job
            if job.deadline != float("inf"):
                self._deadlines.schedule(job.deadline, job)
        self._idle = {worker: None for worker in self.workers.values() if worker.has_capacity}
        self._accepts.clear()
        self._unposted = [job for job in jobs if job.worker is not None and not job.posted]

    def _add_waiting(self, job: QueuedJob, *, first: bool = False) -> None:
        if job.name not in self.fair_queue.by_name:
            self._untried[job.name] = None
        self.fair_queue.add(job, first=first)

    def _drop_empty(self, name: str) -> None:
        """Note that no job of this name waits any more, if that is so."""
        if name not in self.fair_queue.by_name and self._untried.pop(name, name) is not None:
            for worker in self.workers.values():
                worker.names.pop(name, None)

    def _assign_job(self, name: str, worker: WorkerSlot) -> QueuedJob:
        job = self.fair_queue.pop_next(name)
        self._drop_empty(name)
        job.token, job.worker, job.started, job.posted = next(self._tokens), worker, False, False
        self._assigned[job.token] = worker.jobs[job.token] = job
        self._idle.pop(worker, None)  # It goes to the end of the order.
        self._update_idle(worker)
        return job

    def _update_idle(self, worker: WorkerSlot) -> None:
        if worker.has_capacity:
            self._idle.setdefault(worker)
        else:
            self._idle.pop(worker, None)

    def _release_job(self, job: QueuedJob) -> None:
        if job.worker is not None:
            self._former[job.token], job.former[job.token] = job, job.worker.key
            self._unassign(job, job.worker)

    def _unassign(self, job: QueuedJob, worker: WorkerSlot) -> None:
        token = job.token
        job.token, job.worker = 0, None
        del self._assigned[token], worker.jobs[token]
        self._update_idle(worker)

    def _requeue_unstarted(self, worker: WorkerSlot) -> None:
        for job in reversed([job for job in worker.jobs.values() if not job.started]):
            self._requeue(job)

    def _requeue_started(self, worker: WorkerSlot, running: Collection[int]) -> list[QueuedJob]:
        """Requeue what a worker has started and does not run. Remove and return the jobs without attempts left."""
        dead = []
        # Each job is put before the others of its client: the last one first restores their order.
        for token, job in reversed(list(worker.jobs.items())):
            if not job.started or token in running:
                continue
            if job.cancelled:
                self.counts["cancelled"] += 1
                self._remove_job(job)
            elif job.attempt >= self._max_attempts:
                self.counts["dead"] += 1
                self._keep_dead(job)
                self._remove_job(job)
                dead.append(job)
            else:
                self.counts["requeued"] += 1
                self._requeue(job)
        return dead

    def _requeue(self, job: QueuedJob) -> None:
        self._release_job(job)
        job.started = False
        self._add_waiting(job, first=True)

    def _keep_dead(self, job: QueuedJob) -> None:
        self.dead.append(job)
        self._dead_bytes += len(job.body)
        while len(self.dead) > DEAD_LETTERS_KEPT or (len(self.dead) > 1 and self._dead_bytes > DEAD_LETTER_BYTES):
            self._dead_bytes -= len(self.dead.popleft().body)

    def _cancel_job(self, job: QueuedJob) -> None:
        job.cancelled = True
        if not job.started:
            self.counts["cancelled"] += 1
            self._remove_job(job)

    def _remove_job(self, job: QueuedJob) -> None:
        job.finished = True
        jobs = self._by_client.get(job.client, {})
        if jobs.pop(job.request_id, None) is not None:
            self._length -= 1
            self.bytes -= len(job.body)
        if not jobs:
            self._by_client.pop(job.client, None)
        if job.worker is None:
            self.fair_queue.remove(job)
            self._drop_empty(job.name)
        else:
            self._unassign(job, job.worker)
        for token in job.former:
            self._former.pop(token, None)
        # The heap holds removed jobs, their bodies included, until their deadlines, which may be hours away.
        self._deadlines.compact(self._length)
