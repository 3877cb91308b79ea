"""A broker's jobs: what is kept of those that are over."""

from __future__ import annotations

import gc
from weakref import WeakSet

from remit._protocol.job_queue import JobQueue, QueuedJob


class Asker:
    """A client."""


def test_nothing_is_kept_of_a_job_that_is_over_until_its_deadline() -> None:
    jobs = JobQueue(max_attempts=3, queue=1000)
    jobs.register_worker("worker", lambda _: True, 1)
    askers: WeakSet[Asker] = WeakSet()
    for number in range(1000):
        asker = Asker()
        askers.add(asker)
        jobs.submit(QueuedJob(asker, number, "sum", b"", "msgpack", 3600.0 + number))
        ((worker, job),) = jobs.assign()
        assert jobs.job_finished_by(worker.key, job.token) is job
        jobs.finish_job(job)
    del asker, job
    gc.collect()
    assert len(jobs) == 0
    assert len(askers) < 100


def test_what_waits_is_late_at_its_deadline_although_many_others_are_over() -> None:
    jobs = JobQueue(max_attempts=3, queue=1000)
    for number in range(500):
        jobs.submit(QueuedJob("client", number, "sum", b"", "msgpack", 1000.0 - number))
    for number in range(0, 500, 3):
        jobs.cancel("client", number)
    for number in range(1, 500, 3):
        jobs.cancel("client", number)
    assert [job.request_id for job in jobs.expire_jobs(900.0)] == [n for n in range(499, 99, -1) if n % 3 == 2]
    assert [job.request_id for job in jobs.expire_jobs(1000.0)] == [n for n in range(99, 0, -1) if n % 3 == 2]
