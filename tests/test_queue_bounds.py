"""Every queue is bounded in bytes, and no operation costs more the longer the queue is."""

from __future__ import annotations

import contextlib
import gc
import itertools
import sys
import threading
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from ticking import ticked
from waiting import DEADLINE, tick_until, wait_until

from remit import Broker, Client, Event, Location, Server
from remit._io.dispatcher import Dispatcher
from remit._patterns.event_router import EventRouter
from remit._patterns.request_reply import RequestClient
from remit._protocol.client_session import ClientSession
from remit._protocol.deadlines import DeadlineHeap
from remit._protocol.job_queue import JobQueue, QueuedJob
from remit._protocol.outbox import Outbox
from remit._protocol.server_sessions import ServerSessions
from remit._protocol.session import Received, Session
from remit._protocol.subscriptions import SubscriberQueue
from remit.codec import CODECS, EventMessage
from remit.errors import QueueFull, RequestError, Undelivered
from remit.transport import SERVER, Frame, Up

CODEC = CODECS["msgpack"]
LARGE = b"x" * 100_000
"""Ten of these fill a queue of 1 MB."""
FEW = 100
GROWTH = 1.5
"""Allowed growth of the cost for each tenfold of the queue. Heaps grow with the logarithm."""


def fill(queue_one: Callable[[int], object], match: str) -> None:
    """Queue until the queue is full."""
    with pytest.raises(QueueFull, match=match):
        deque(map(queue_one, itertools.count()), maxlen=0)


# -- bytes ------------------------------------------------------------------------------------------------------------


def test_a_client_queues_up_to_its_bytes(location: Location) -> None:
    client = Client(
        location.replace(port=1) if location.port == 0 else location, queue_bytes=1_000_000, when_full="raise"
    )
    fill(lambda _: client.emit("e", LARGE), "emit|queued")
    assert 900_000 < client.stats()["queued_bytes"] <= 1_000_000
    with pytest.raises(Undelivered):
        client.close(0.0)


@pytest.mark.parametrize("when_full", ["raise", "drop_oldest", "drop_newest"])
def test_small_events_are_bounded_too(when_full: str) -> None:
    """Whatever the ratio of the two bounds is: no event is too small to be counted."""
    client = Client("memory://bounds-no-server", queue=1000, queue_bytes=10_000, when_full=when_full)
    with contextlib.suppress(QueueFull):
        for number in range(2000):
            client.emit("e", b"x" * (number % 30))
    assert 5_000 < client.stats()["queued_bytes"] <= 20_000
    with pytest.raises(Undelivered):
        client.close(0.0)


def test_a_server_queues_up_to_its_bytes_for_each_client(location: Location) -> None:
    """By sender.emit, and with answers: the caller of one that does not fit gets an error."""
    with Server(location, queue_bytes=1_000_000) as server, Client(server.location, threaded=False) as client:
        senders: list[Any] = []
        server.add_listener("hello", lambda event: senders.append(event.sender), pass_event=True)
        client.emit("hello")
        client.tick()
        tick_until(server, lambda: senders or client.tick())
        fill(lambda _: senders[0].emit("big", LARGE), "queue_bytes")
        assert 800_000 < server.stats()["queued_bytes"] <= 1_000_000


def test_an_answer_that_does_not_fit_is_an_error(location: Location) -> None:
    with Server(location, queue_bytes=100_000) as server, ticked(server), Client(server.location) as client:
        server.add_listener("big", lambda: LARGE * 9)
        answers = [client.submit("big") for _ in range(200)]
        outcomes = [answer.exception(DEADLINE) for answer in answers]
        assert any(outcome is None for outcome in outcomes)
        assert all(isinstance(outcome, RequestError) for outcome in outcomes if outcome is not None)


@pytest.mark.parametrize("when_full", ["drop_oldest", "drop_newest", "unsubscribe"])
def test_a_subscription_queues_up_to_its_bytes(when_full: str) -> None:
    queue = SubscriberQueue(1, str, queue=1000, queue_bytes=1_000_000, when_full=when_full, max_lag=None)
    for number in range(100):
        queue.enqueue(LARGE[number:], 0.0)
        assert queue.bytes <= 1_000_000
    assert bool(queue.ended) is (when_full == "unsubscribe")
    sizes = [len(data) for _, data in queue.pop_publications(1000, 1 << 30, 0.0)]
    assert sum(sizes) == 0 if when_full == "unsubscribe" else 800_000 < sum(sizes) <= 1_000_000
    assert queue.bytes == 0


def test_a_stuck_subscriber_costs_what_it_may(location: Location) -> None:
    with Server(location, queue_bytes=1_000_000) as server, Client(server.location, threaded=False) as client:
        subscribing = threading.Thread(
            target=lambda: client.subscribe("v", print, queue_bytes=1 << 40, timeout=DEADLINE)
        )
        subscribing.start()
        tick_until(server, lambda: not subscribing.is_alive())
        for _ in range(200):
            server.publish("v", LARGE)
        stats = server.stats()
        assert 800_000 < stats["publications_bytes"] <= 1_000_000
        assert stats["publications_dropped"] > 100


def test_kept_values_are_bounded(location: Location) -> None:
    with Server(location, keep_bytes=1_000_000) as server:
        for _ in range(100):
            server.publish("one", LARGE, keep=True)
        fill(lambda number: server.publish(f"v{number}", LARGE, keep=True), "keep_bytes")
        server.publish("one", LARGE, keep=True)
        assert 800_000 < server.stats()["kept_bytes"] <= 1_000_000


def test_jobs_are_bounded_in_bytes(location: Location) -> None:
    with Broker(location, job_bytes=1_000_000) as broker, Client(broker.location) as client:
        answers = [client.submit("none", LARGE, timeout=DEADLINE) for _ in range(11)]
        wait_until(lambda: broker.tick() * 0 or any(answer.done() for answer in answers))
        assert 800_000 < broker.stats()["job_bytes"] <= 1_000_000
        assert "job_bytes" in str(next(answer.exception() for answer in answers if answer.done()))
        for answer in answers:
            answer.cancel()
        wait_until(lambda: broker.tick() * 0 or not broker.stats()["job_bytes"])


@pytest.mark.parametrize("delivery", ["acknowledged", "at_most_once"])
@pytest.mark.parametrize(("clients", "most"), [(1, 100_000), (6, 400_000)])
def test_a_server_that_is_not_ticked_holds_what_it_may(
    location: Location, clients: int, most: int, delivery: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The rest is dropped and counted, or sent later."""
    heard: dict[str, list[int]] = {}

    def note(event: Event) -> None:
        heard.setdefault(event.sender.id, []).append(event.args[0])

    with Server(location, queue_bytes=100_000) as server, contextlib.ExitStack() as stack:
        server.add_listener("e", note, pass_event=True)
        for _ in range(clients):
            client = stack.enter_context(Client(server.location, delivery=delivery))
            for number in range(30):
                client.emit("e", number, b"x" * 10_000)
        held: list[int] = []
        wait_until(lambda: held.append(server.stats()["waiting_bytes"]) or held[-1] > 0.9 * most)
        if delivery == "at_most_once":
            wait_until(lambda: server.stats()["dropped"] + server.stats()["waiting"] == 30 * clients)
            assert server.stats()["dropped"] > 0
        assert max(held) <= most + 80_000  # One frame more.
        tick_until(server, lambda: sum(map(len, heard.values())) + server.stats()["dropped"] == 30 * clients)
        for numbers in heard.values():
            assert numbers == sorted(set(numbers))
        assert server.stats()["waiting_bytes"] == 0
        records = [record for record in caplog.messages if "queue_bytes" in record]
        assert len(records) == (delivery == "at_most_once")
        with ticked(server):
            stack.close()


def test_a_count_that_drifted_is_corrected() -> None:
    """Threads share the count without a lock, and an interrupt may come between an event and its count."""
    outbox = Outbox(CODEC, max_frame=1 << 20, queue=1000, queue_bytes=1_000_000)
    for _ in range(5):
        outbox.count_bytes(len(LARGE))
        outbox.pending.append(LARGE)
    for drift in (10_000_000, -10_000_000):
        outbox.large_bytes += drift
        for _ in range(7):
            full = outbox.is_full(600_000), outbox.is_full(400_000)
        assert full == (True, False)


# -- costs ------------------------------------------------------------------------------------------------------------


def lines_of(call: Callable[[], object]) -> int:
    """Return the number of lines of Python code that a call executes."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    gc.collect()
    gc.disable()
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
        gc.enable()
    return count


def an_emit(size: int) -> Callable[[], object]:
    outbox = Outbox(CODEC, max_frame=1 << 20, queue=1 << 20, queue_bytes=1 << 40, small_bytes=0)
    for _ in range(size):
        outbox.pending.append(b"x" * 10)
    return lambda: outbox.is_full(10)


def requests_of(size: int) -> tuple[Outbox, RequestClient, deque[Any]]:
    outbox = Outbox(CODEC, max_frame=1 << 20)
    outbox.pending.append(CODEC.encode("first", (), {}, {}))  # Never expires.
    clock = [0.0]

    def post(_: str, data: bytes) -> bool:
        outbox.pending.append(data)
        return True

    client = RequestClient(CODEC, outbox, post, lambda _: None, lambda: clock[0])
    futures = deque(
        client.submit("r", (), {}, {}, timeout=float(number + 1), idempotent=False, on_progress=None)
        for number in range(size)
    )
    return outbox, client, futures


def a_cancellation(size: int) -> Callable[[], object]:
    _, _, futures = requests_of(size)
    return futures[size // 2].cancel


def an_expiry(size: int) -> Callable[[], object]:
    _, client, _ = requests_of(size)
    client.expire(0.5)
    return lambda: client.expire(1.5)


def all_cancellations(size: int) -> Callable[[], object]:
    """Cancel all from the last to the first, with the compaction that the owner of the link does between them."""
    outbox, _, futures = requests_of(size)

    def cancel_all() -> None:
        while futures:
            futures.pop().cancel()
            outbox.compact()

    return cancel_all


def jobs_of(size: int) -> JobQueue:
    jobs = JobQueue(max_attempts=3, queue=1 << 30)
    for number in range(size):
        jobs.submit(QueuedJob("one", number, "sum", b"", "msgpack", 1000.0 + number))
    jobs.submit(QueuedJob("other", 0, "sum", b"", "msgpack", 3600.0))
    return jobs


def a_job_cancelled(size: int) -> Callable[[], object]:
    jobs = jobs_of(size)
    return lambda: jobs.cancel("one", size // 2)


def a_client_removed(size: int) -> Callable[[], object]:
    jobs = jobs_of(size)
    return lambda: jobs.remove_client("other")


def a_job_expired(size: int) -> Callable[[], object]:
    jobs = jobs_of(size)
    jobs.expire_jobs(0.0)
    return lambda: jobs.expire_jobs(1000.5)


def an_assignment(size: int) -> Callable[[], object]:
    jobs = jobs_of(size)
    jobs.register_worker("worker", lambda _: True, 1)
    return lambda: list(jobs.assign())


def an_assignment_beside_other_names(size: int) -> Callable[[], object]:
    jobs = jobs_of(0)
    for number in range(size):
        jobs.submit(QueuedJob("one", number, f"name{number}", b"", "msgpack", 1000.0))
    jobs.register_worker("worker", "sum".__eq__, 1)
    jobs.register_worker("idle", "none".__eq__, 1)
    list(jobs.assign())
    jobs.submit(QueuedJob("one", size, "sum", b"", "msgpack", 1000.0))

    def finish_and_assign() -> None:
        for job in list(jobs.workers["worker"].jobs.values()):
            jobs.finish_job(job)
        ((_, job),) = jobs.assign()
        assert job.name == "sum"

    return finish_and_assign


class Compared(Received):
    """Counts a search in a queue: the interpreter calls this for each element."""

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = Received.__hash__


def a_routing(size: int) -> Callable[[], object]:
    dispatcher = Dispatcher(EventRouter(), lambda: None, lambda: None)
    session = Session(b"one", CODEC, Outbox(CODEC, max_frame=1000))
    ready: deque[Received] = deque(Compared(session, [EventMessage("e")]) for _ in range(size))
    dispatcher.route(ready)
    ready.append(Compared(session, [EventMessage("e")]))
    return lambda: dispatcher.route(ready)


def an_arrival_at_a_full_server(size: int) -> Callable[[], object]:
    machine = ServerSessions(
        lambda codec, limit: Outbox(codec, max_frame=limit), max_frame=1000, liveness_timeout=0.0, queue_bytes=size
    )
    client = ClientSession(CODEC, Outbox(CODEC, max_frame=1000, sequenced=False), max_frame=1000)
    client.handle_arrival(Up(SERVER), 0.0)

    def send() -> None:
        client.session.outbox.pending.append(CODEC.encode("e", (), {}, {}))
        while (frame := client.next_frame()) is not None:
            client.session.mark_sent(0.0)
            machine.handle_arrival(Frame("peer", frame), 1.0)

    while not machine.dropped:
        send()
    return send


def a_session_end(size: int) -> Callable[[], object]:
    machine = ServerSessions(lambda codec, limit: Outbox(codec, max_frame=limit), max_frame=1000, liveness_timeout=0.0)
    session, ended = (Session(name, CODEC, Outbox(CODEC, max_frame=1000)) for name in (b"one", b"two"))
    machine.closed.append((ended, 0))
    machine.ready.extend(Received(session, []) for _ in range(size))
    machine.enqueued = size
    return lambda: list(machine.pop_closed(()))


def a_drop(size: int) -> Callable[[], object]:
    queue = SubscriberQueue(1, str, queue=size, queue_bytes=1 << 40, when_full="drop_oldest", max_lag=None)
    for _ in range(size):
        queue.enqueue(b"", 0.0)
    return lambda: queue.enqueue(b"", 0.0)


def a_deadline(size: int) -> Callable[[], object]:
    heap: DeadlineHeap[int] = DeadlineHeap()
    for number in range(size):
        heap.schedule(float(number), number)
    heap.next_deadline()

    def change() -> None:
        heap.schedule(0.5, -1)
        heap.next_deadline()

    return change


OPERATIONS: list[Callable[[int], Callable[[], object]]] = [
    an_emit,
    a_cancellation,
    an_expiry,
    a_job_cancelled,
    a_client_removed,
    a_job_expired,
    an_assignment,
    an_assignment_beside_other_names,
    a_routing,
    an_arrival_at_a_full_server,
    a_session_end,
    a_drop,
    a_deadline,
]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_executes_as_many_lines_in_a_long_queue(operation: Callable[[int], Callable[[], object]]) -> None:
    assert 0 < lines_of(operation(20 * FEW)) <= lines_of(operation(FEW)) + 5


def test_all_cancellations_together_are_linear() -> None:
    few, many = (lines_of(all_cancellations(size)) / size for size in (FEW, 10 * FEW))
    assert many <= GROWTH * few
