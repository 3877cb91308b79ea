"""Broken jobs: lost, given twice, tried for ever, or kept from those who could do them."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

from broken import Mutation
from remit._patterns import jobs
from remit._patterns.jobs import WorkerJobs
from remit._protocol.job_queue import FairQueue, JobQueue, QueuedJob, WorkerSlot
from remit._protocol.leases import Leases
from remit._protocol.session import Session


def lose_jobs_with_their_worker(self: JobQueue, key: Hashable) -> list[QueuedJob]:
    worker = self.workers.pop(key, None)
    for job in list(worker.jobs.values()) if worker else []:
        self._remove_job(job)
    if worker is not None:
        self._idle.pop(worker, None)
    return []


def leave_jobs_with_a_dead_worker(self: JobQueue, key: Hashable) -> list[QueuedJob]:
    return []


def try_for_ever(self: JobQueue, key: Hashable, *, original: Any) -> list[QueuedJob]:
    self._max_attempts = 1 << 30
    return original(self, key)


def give_up_at_once(self: JobQueue, key: Hashable, *, original: Any) -> list[QueuedJob]:
    self._max_attempts = 1
    return original(self, key)


def give_twice(self: JobQueue, *, original: Any) -> Iterator[tuple[WorkerSlot, QueuedJob]]:
    for worker, job in original(self):
        yield worker, job
        other = next((each for each in self._idle if each is not worker and each.accepts(job.name)), None)
        if other is not None:
            yield other, self._assign_job(job, other)


def keep_the_token(self: JobQueue, job: QueuedJob, *, original: Any) -> None:
    token, worker = job.token, job.worker
    original(self, job)
    job.token, job.worker = token, worker
    self._assigned[token] = job
    if worker is not None:
        worker.jobs[token] = job


def believe_whoever_is_done(self: JobQueue, key: Hashable, token: int) -> QueuedJob | None:
    return self._assigned.get(token) or next(iter(self._assigned.values()), None)


def keep_what_was_purged(self: JobQueue, worker: WorkerSlot) -> None:
    return


def serve_one_client_only(self: FairQueue, name: str) -> QueuedJob:
    job = next(iter(next(iter(self.by_name[name].values()))))
    self.remove(job)
    return job


def forget_who_is_idle(self: JobQueue, worker: WorkerSlot, *, original: Any) -> None:
    if not worker.has_capacity or len(worker.jobs) == 0:
        original(self, worker)


def do_what_nobody_wants(self: JobQueue, job: QueuedJob) -> None:
    if not job.started:
        self.fair_queue.add(job)


def overload(self: WorkerSlot) -> bool:
    return not self.retiring and len(self.jobs) <= self.capacity


def never_end_a_lease(self: Leases, now: float) -> list[Session]:
    return []


def end_leases_early(self: Leases, session: Session, now: float) -> bool:
    return session.peer is None or now - session.last_received_at > self.lease_s / 2


def hold_an_old_loss_against_it(self: Leases, session: Session, now: float, *, original: Any) -> bool:
    away = self._disconnected_at.get(session)
    return (away is not None and now - away > 2.0) or original(self, session, now)


def never_come_back(self: WorkerJobs) -> None:
    return


MUTATIONS: list[Mutation] = [
    (JobQueue, "remove_worker", lose_jobs_with_their_worker),
    (JobQueue, "remove_worker", leave_jobs_with_a_dead_worker),
    (JobQueue, "remove_worker", try_for_ever),
    (JobQueue, "remove_worker", give_up_at_once),
    (JobQueue, "assign", give_twice),
    (JobQueue, "_requeue", keep_the_token),
    (JobQueue, "job_held_by", believe_whoever_is_done),
    (JobQueue, "_requeue_unstarted", keep_what_was_purged),
    (FairQueue, "pop_next", serve_one_client_only),
    (JobQueue, "_update_idle", forget_who_is_idle),
    (JobQueue, "_cancel_job", do_what_nobody_wants),
    (WorkerSlot, "has_capacity", property(overload)),
    (Leases, "remove_expired", never_end_a_lease),
    (Leases, "_expired", end_leases_early),
    (Leases, "_expired", hold_an_old_loss_against_it),
    (WorkerJobs, "on_lease_lost", never_come_back),
    (jobs, "TOKEN_BITS", 0),
]
