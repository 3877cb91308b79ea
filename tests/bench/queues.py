"""Queues: what one operation costs beside one queued item, and beside 100,000."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from functools import partial

from bench.cases import Case, Table
from remit.codec import CODECS

TABLE = Table("an operation on a queue", "us", less_is_better=True)
SIZES = (1, 100, 10_000, 100_000)
GROWTH = 1.5
"""Allowed growth for each tenfold of the queue."""
REPEATED = 200
_numbers = itertools.count()


def cases() -> list[Case]:
    """Return the rows."""
    rows = []
    for name, operation in (
        ("emit of 5 kB", emits),
        ("cancellation", cancellations),
        ("publication dropped", drops),
        ("job cancelled", jobs_cancelled),
        ("job submitted", jobs_submitted),
        ("job assigned beside names that wait", jobs_assigned),
        ("frame received behind others", frames_routed),
    ):
        labels = [f"{name}, {size} queued" for size in SIZES]
        for size, label, before in zip(SIZES, labels, [None, *labels], strict=False):
            decades = len(str(size)) - len(str(SIZES[max(0, SIZES.index(size) - 1)]))
            against = () if before is None else ((before, GROWTH**decades),)
            rows.append(Case(TABLE, label, partial(operation, size), against))
    return rows


def timed(calls: Iterable[Callable[[], object]]) -> float:
    """Return the least time of the calls, in microseconds."""
    best = float("inf")
    for call in calls:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best * 1e6


class Constant:
    """A codec that encodes each event as the same bytes: the cost of fresh memory is not the queue's."""

    name = "constant"
    data = CODECS["msgpack"].encode("e", (b"x" * 5000,), {}, {})
    join = CODECS["msgpack"].join
    decode = CODECS["msgpack"].decode

    def encode(self, *_: object) -> bytes:
        """Return the bytes."""
        return self.data


def emits(size: int) -> float:
    """Return the time of an emit behind large events that nothing sends."""
    from remit import Client
    from remit.errors import Undelivered

    client = Client(f"memory://queue{next(_numbers)}", codec=Constant(), queue=1 << 20, queue_bytes=1 << 34)
    for _ in range(size):
        client.emit("e")
    spent = timed([partial(client.emit, "e")] * REPEATED)
    try:
        client.close(0.0)
    except Undelivered:
        return spent
    raise AssertionError("there is no server")


def cancellations(size: int) -> float:
    """Return the time to cancel a request among others that nothing sends."""
    from remit import Client

    client = Client(f"memory://queue{next(_numbers)}", threaded=False, queue=1 << 20)
    futures = [client.submit("r", timeout=1e9) for _ in range(size + REPEATED)]
    middle = size // 2
    spent = timed(future.cancel for future in futures[middle : middle + REPEATED])
    client.close(0.0)
    return spent


def drops(size: int) -> float:
    """Return the time to queue a publication that displaces the oldest one."""
    from remit._protocol.subscriptions import SubscriberQueue

    queue = SubscriberQueue(1, str, queue=size, queue_bytes=1 << 40, when_full="drop_oldest", max_lag=None)
    for _ in range(size):
        queue.enqueue(b"", 0.0)
    return timed([partial(queue.enqueue, b"", 0.0)] * REPEATED)


def jobs_cancelled(size: int) -> float:
    """Return the time to cancel a job in the middle of a broker's queue."""
    from remit._protocol.job_queue import JobQueue, QueuedJob

    jobs = JobQueue(max_attempts=3, queue=1 << 30)
    for number in range(size + REPEATED):
        jobs.submit(QueuedJob("one", number, "sum", b"", "msgpack", 1e9))
    middle = size // 2
    return timed(partial(jobs.cancel, "one", number) for number in range(middle, middle + REPEATED))


def jobs_submitted(size: int) -> float:
    """Return the time to submit a job."""
    from remit._protocol.job_queue import JobQueue, QueuedJob

    jobs = JobQueue(max_attempts=3, queue=1 << 30)
    for number in range(size):
        jobs.submit(QueuedJob("one", number, "sum", b"", "msgpack", 1e9))
    more = (QueuedJob("one", number, "sum", b"", "msgpack", 1e9) for number in range(size, size + REPEATED))
    return timed(partial(jobs.submit, job) for job in more)


def jobs_assigned(size: int) -> float:
    """Return the time to assign a job while jobs of other names wait for a worker."""
    from remit._protocol.job_queue import JobQueue, QueuedJob

    jobs = JobQueue(max_attempts=3, queue=1 << 30)
    for number in range(size):
        jobs.submit(QueuedJob("one", number, f"name{number}", b"", "msgpack", 1e9))
    jobs.register_worker("worker", "sum".__eq__, REPEATED)
    list(jobs.assign())

    def submit_and_assign(number: int) -> None:
        jobs.submit(QueuedJob("one", number, "sum", b"", "msgpack", 1e9))
        list(jobs.assign())

    return timed(partial(submit_and_assign, number) for number in range(size, size + REPEATED))


def frames_routed(size: int) -> float:
    """Return the time in which a client queues a received frame behind others whose listeners have not run."""
    from collections import deque

    from remit._io.dispatcher import Dispatcher
    from remit._patterns.event_router import EventRouter
    from remit._protocol.outbox import Outbox
    from remit._protocol.session import Received, Session
    from remit.codec import EventMessage

    codec = CODECS["msgpack"]
    session = Session(b"one", codec, Outbox(codec, max_frame=1000))
    dispatcher = Dispatcher(EventRouter(), lambda: None, lambda: None)
    dispatcher.route(deque(Received(session, [EventMessage("e")]) for _ in range(size)))
    more = (deque([Received(session, [EventMessage("e")])]) for _ in range(REPEATED))
    return timed(partial(dispatcher.route, ready) for ready in more)
