"""What the simulator found above the sessions: each once lost a job, an answer or a gap, or kept a seat for nobody."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from remit._patterns.event_router import EventRouter
from remit._patterns.exclusive_pair import PairClient, PairServer
from remit._patterns.jobs import BrokerCore, WorkerJobs
from remit._patterns.jobs import Job as Given
from remit._patterns.names import (
    JOB,
    PAIR_JOIN,
    PAIR_SIGNAL,
    PUBLISHED,
    SERVER_RESTARTED,
    WORKER_READY,
    WORKER_UNKNOWN,
)
from remit._patterns.pubsub import Publisher
from remit._patterns.request_reply import RequestClient, RequestServer
from remit._protocol.job_queue import JobQueue, QueuedJob
from remit._protocol.leases import Leases
from remit._protocol.outbox import Outbox
from remit._protocol.session import Session
from remit.codec import EventMessage, MessagePack
from remit.errors import PeerLost
from remit.event import Sender

CODEC = MessagePack()
LEASE = 10.0
FOREVER = float("inf")


def new_session(name: bytes = b"s") -> Session:
    session = Session(name * 16, CODEC, Outbox(CODEC, max_frame=1 << 20))
    session.peer = 1
    session.sender = Sender(session, lambda *_: None)
    return session


def job_of(client: object, question: int) -> QueuedJob:
    return QueuedJob(client, question, "work", b"", "msgpack", FOREVER)


def jobs_with_worker(*jobs: QueuedJob) -> JobQueue:
    held = JobQueue(max_attempts=3, queue=10)
    held.register_worker("worker", bool, 5)
    for job in jobs:
        held.submit(job)
    list(held.assign())
    return held


class Talk:
    """A client that writes down what it is told to say."""

    silence = 0.0

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []
        self.asked: list[Future[Any]] = []

    def emit(self, name: str, /, *args: Any) -> None:
        self.said.append((name, *args))

    def submit(self, name: str, /, *args: Any, timeout: float | None = None, idempotent: bool = False) -> Future[Any]:
        self.said.append((name, *args))
        self.asked.append(Future())
        return self.asked[-1]


# -- questions -------------------------------------------------------------------------------------------------


def asking_with(outbox: Outbox) -> RequestClient:
    def post(name: str, data: bytes) -> bool:
        outbox.pending.append(data)
        return True

    return RequestClient(CODEC, outbox, post, lambda _: None, lambda: 0.0)


def ask(asking: RequestClient, *, idempotent: bool = False) -> Future[Any]:
    return asking.submit("question", (), {}, {}, timeout=FOREVER, idempotent=idempotent, on_progress=None)


def test_a_lost_question_is_told_though_one_before_it_was_taken_back() -> None:
    outbox = Outbox(CODEC, max_frame=1 << 20)
    asking = asking_with(outbox)
    first, second = ask(asking), ask(asking)
    first.cancel()
    outbox.pop_frame()
    asking.on_disconnect("cut")
    assert isinstance(second.exception(0), PeerLost)


@pytest.mark.parametrize("confirmed", [True, False])
def test_what_another_server_may_have_run_is_told_as_lost_when_it_began_anew(confirmed: bool) -> None:
    outbox = Outbox(CODEC, max_frame=1 << 20)
    asking = asking_with(outbox)
    once, again = ask(asking), ask(asking, idempotent=True)
    outbox.pop_frame()
    if confirmed:
        outbox.confirm(2, 2)
    outbox.redeliver()
    unsent = ask(asking)
    asking.on_server_restart()
    assert isinstance(once.exception(0), PeerLost)
    assert not again.done()
    assert not unsent.done()
    assert len(outbox.pending) == 1 + confirmed


# -- jobs ------------------------------------------------------------------------------------------------------


def test_a_worker_that_announces_itself_anew_has_nothing_that_it_has_not_begun() -> None:
    first, second = job_of("client", 1), job_of("client", 2)
    jobs = jobs_with_worker(first, second)
    jobs.start_job("worker", first.token)
    jobs.register_worker("worker", bool, 5, 1)
    assert (first.worker is not None, second.worker is None) == (True, True)
    assert [job for _, job in jobs.assign()] == [second]


def test_an_announcement_that_comes_too_late_changes_nothing() -> None:
    jobs = jobs_with_worker()
    jobs.register_worker("worker", bool, 5, 2)
    jobs.register_worker("worker", bool, 1, 1)
    assert [(worker.capacity, worker.term) for worker in jobs.workers.values()] == [(5, 2)]


@pytest.mark.parametrize("how", ["cancelled", "late", "its client ended"])
def test_what_nobody_wants_any_more_ends_with_the_worker_that_had_begun_it(how: str) -> None:
    job = job_of("client", 1)
    job.deadline = 1.0
    jobs = jobs_with_worker(job)
    jobs.start_job("worker", job.token)
    {
        "cancelled": lambda: jobs.cancel("client", 1),
        "late": lambda: jobs.expire_jobs(2.0),
        "its client ended": lambda: jobs.remove_client("client"),
    }[how]()
    assert len(jobs) == 1
    assert jobs.remove_worker("worker") == []
    assert len(jobs) == 0


def test_a_worker_that_came_back_in_between_is_not_away_since_the_first_time() -> None:
    leases, session = Leases(LEASE), new_session()
    leases.register(session)
    session.peer = None
    assert leases.remove_expired(1.0) == []
    session.last_received_at = 2.5  # It was here, between two looks.
    assert leases.remove_expired(3.5) == []
    assert leases.remove_expired(5.6) == [session]


class Desk:
    """A brokering whose words are kept."""

    def __init__(self) -> None:
        self.now = 0.0
        self.posted: list[tuple[Session, str, tuple[Any, ...]]] = []
        router = EventRouter()
        answering = RequestServer(router, lambda *_: (False, None), self.post)
        self.brokering = BrokerCore(
            router, answering, self.post, lease=LEASE, max_attempts=3, queue=10, clock=lambda: self.now
        )
        self.services = router.request_handlers

    def post(self, session: Session, name: str, args: tuple[Any, ...]) -> None:
        self.posted.append((session, name, args))


def test_an_idle_worker_that_was_taken_for_dead_is_told() -> None:
    desk, worker = Desk(), new_session()
    desk.services[WORKER_READY](worker, ["work"], 1)
    desk.now = LEASE + 1
    desk.brokering.advance(desk.now)
    assert desk.posted == [(worker, WORKER_UNKNOWN, ())]


def test_no_two_brokers_name_jobs_alike() -> None:
    tokens = set()
    for _ in range(20):
        desk, worker = Desk(), new_session()
        desk.services[WORKER_READY](worker, ["work"], 1)
        desk.brokering.jobs.submit(job_of(worker, 1))
        desk.brokering.advance(desk.now)
        (_, name, (token, *_)), *_ = desk.posted
        assert name == JOB
        tokens.add(token)
    assert len(tokens) == 20


def test_a_worker_passes_over_what_was_given_before_it_announced_itself_anew() -> None:
    talk = Talk()
    working = WorkerJobs(talk, lambda: ["work"], 2)
    working.announce()
    working.on_lease_lost()
    assert [said[3] for said in talk.said] == [1, 2]
    working.on_job(EventMessage(JOB, (7, 1, None, "msgpack", b"", 1)))
    working.on_job(EventMessage(JOB, (8, 1, None, "msgpack", b"", 2)))
    assert working.wait_for_job(0) == Given(8, 1, None, "msgpack", b"", 2)


# -- publications ----------------------------------------------------------------------------------------------


def test_a_subscription_that_is_asked_for_twice_goes_on() -> None:
    session = new_session()
    publishing = Publisher(lambda _: None, lambda: 0.0)
    for _ in range(2):
        publishing.subscribe(session, 1, "news", 10, "drop_oldest", None, False)
        publishing.publish("news", (), {}, keep=False)
    assert session.outbox.refill is not None
    session.outbox.refill()
    wires = [CODEC.decode(CODEC.join(b"", [data]))[0] for data in session.outbox.pending]
    assert [(wire.name, wire.args[1]) for wire in wires] == [(PUBLISHED, 1), (PUBLISHED, 2)]


# -- pairs -----------------------------------------------------------------------------------------------------


class Table:
    """An owner and its guests."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.router = EventRouter()
        self.owner = PairServer(self.router, lambda *_: None, self.heard.append, lease=LEASE, clock=lambda: 0.0)
        self.services = self.router.request_handlers


def test_one_who_speaks_in_an_epoch_that_is_over_does_not_keep_the_seat() -> None:
    table, session = Table(), new_session()
    epoch, _ = table.services[PAIR_JOIN](session, LEASE)
    table.router.handlers[PAIR_SIGNAL][0](EventMessage(PAIR_SIGNAL, (epoch - 1, "old")), session.sender, True)
    assert table.owner.holder is None
    assert all(isinstance(each, PeerLost) for each in table.heard)


def test_a_guest_that_lost_its_owner_by_silence_gives_the_seat_up() -> None:
    table, session, talk = Table(), new_session(), Talk()
    guest = PairClient(EventRouter(), talk, lambda _: None, lease=LEASE)
    guest.on_joined(table.services[PAIR_JOIN](session, LEASE))
    talk.silence = LEASE + 1
    assert guest.lost_reason()
    name, epoch = talk.said[-1]
    assert table.services[name](session, epoch) is False
    assert table.owner.holder is None


def test_a_guest_that_joins_a_server_that_began_anew_is_not_lost() -> None:
    talk = Talk()
    router = EventRouter()
    guest = PairClient(router, talk, lambda _: None, lease=LEASE)
    router.handlers[SERVER_RESTARTED][0](EventMessage(SERVER_RESTARTED), None, False)
    guest.on_joined((5, LEASE))
    assert not guest.lost_reason()
    router.handlers[SERVER_RESTARTED][0](EventMessage(SERVER_RESTARTED), None, False)
    talk.asked[-1].set_result(False)
    assert guest.lost_reason()


def test_no_two_owners_have_the_same_epochs() -> None:
    assert len({Table().services[PAIR_JOIN](new_session(), LEASE)[0] for _ in range(20)}) == 20
