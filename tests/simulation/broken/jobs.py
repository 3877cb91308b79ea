"""Broken jobs: lost, given twice, tried for ever, or kept from those who could do them."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

import remit.patterns.brokering
from broken import Mutation
from remit.patterns.working import Working
from remit.protocol.job import Job, Worker
from remit.protocol.jobs import Jobs
from remit.protocol.leases import Leases
from remit.protocol.session import Session
from remit.protocol.waiting import Waiting


def lose_jobs_with_their_worker(self: Jobs, key: Hashable) -> list[Job]:
    worker = self._workers.pop(key, None)
    for job in list(worker.hand.values()) if worker else []:
        self._end(job)
    if worker is not None:
        self._idle.pop(worker, None)
    return []


def leave_jobs_with_a_dead_worker(self: Jobs, key: Hashable) -> list[Job]:
    return []


def try_for_ever(self: Jobs, key: Hashable) -> list[Job]:
    self._max_attempts = 1 << 30
    return original_lost(self, key)


def give_up_at_once(self: Jobs, key: Hashable) -> list[Job]:
    self._max_attempts = 1
    return original_lost(self, key)


def give_twice(self: Jobs) -> Iterator[tuple[Worker, Job]]:
    for worker, job in original_assign(self):
        yield worker, job
        other = next((each for each in self._idle if each is not worker and each.takes(job.name)), None)
        if other is not None:
            yield other, self._give(job, other)


def keep_the_token(self: Jobs, job: Job) -> None:
    token, worker = job.token, job.worker
    original_put_back(self, job)
    job.token, job.worker = token, worker
    self._in_hand[token] = job
    if worker is not None:
        worker.hand[token] = job


def believe_whoever_is_done(self: Jobs, key: Hashable, token: int) -> Job | None:
    return self._in_hand.get(token) or next(iter(self._in_hand.values()), None)


def keep_what_was_purged(self: Jobs, worker: Worker) -> None:
    return


def serve_one_client_only(self: Waiting, name: str) -> Job:
    job = next(iter(self._names[name].values()))[0]
    self.drop(job)
    return job


def forget_who_is_idle(self: Jobs, worker: Worker) -> None:
    if not worker.idle or len(worker.hand) == 0:
        original_regard(self, worker)


def do_what_nobody_wants(self: Jobs, job: Job) -> None:
    if not job.begun:
        self._waiting.add(job)


def overload(self: Worker) -> bool:
    return not self.leaving and len(self.hand) <= self.capacity


def never_end_a_lease(self: Leases, now: float) -> list[Session]:
    return []


def end_leases_early(self: Leases, session: Session, now: float) -> bool:
    return session.peer is None or now - session.heard > self.seconds / 2


def hold_an_old_loss_against_it(self: Leases, session: Session, now: float) -> bool:
    away = self._away.get(session)
    return (away is not None and now - away > 2.0) or original_over(self, session, now)


def never_come_back(self: Working) -> None:
    return


original_lost = Jobs.worker_lost
original_assign = Jobs.assign
original_put_back = Jobs._put_back
original_regard = Jobs._regard
original_over = Leases._over

MUTATIONS: list[Mutation] = [
    (Jobs, "worker_lost", lose_jobs_with_their_worker),
    (Jobs, "worker_lost", leave_jobs_with_a_dead_worker),
    (Jobs, "worker_lost", try_for_ever),
    (Jobs, "worker_lost", give_up_at_once),
    (Jobs, "assign", give_twice),
    (Jobs, "_put_back", keep_the_token),
    (Jobs, "_held", believe_whoever_is_done),
    (Jobs, "_take_back", keep_what_was_purged),
    (Waiting, "pick", serve_one_client_only),
    (Jobs, "_regard", forget_who_is_idle),
    (Jobs, "_unwanted", do_what_nobody_wants),
    (Worker, "idle", property(overload)),
    (Leases, "lapsed", never_end_a_lease),
    (Leases, "_over", end_leases_early),
    (Leases, "_over", hold_an_old_loss_against_it),
    (Working, "lapsed", never_come_back),
    (remit.patterns.brokering, "TOKEN_BITS", 0),
]
