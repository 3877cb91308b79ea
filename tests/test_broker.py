"""Broker and workers: real processes that take jobs, die of them, and are replaced."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from internals import client_io
from labour import start_worker
from waiting import DEADLINE, wait_until

from remit import Broker, Client, Worker
from remit._protocol.outbox import HEAD_BYTES
from remit.errors import DeadLetter, FrameTooLarge, RequestError, RequestFailed, RequestTimeout


@contextmanager
def running(broker: Broker) -> Iterator[Broker]:
    """Run a broker in a thread of its own."""
    thread = threading.Thread(target=broker.run)
    thread.start()
    try:
        yield broker
    finally:
        broker.stop()
        thread.join(DEADLINE)


@pytest.fixture
def broker(crossing_location) -> Iterator[Broker]:
    with Broker(crossing_location, lease=1.0) as broker, running(broker):
        yield broker


@pytest.fixture
def hire(broker, tmp_path):
    """Start a worker and wait until the broker knows it."""
    workers = []

    def start(capacity: int = 1):
        before = broker.stats()["workers"]
        workers.append(start_worker(broker.location.url, tmp_path, capacity))
        wait_until(lambda: broker.stats()["workers"] == before + 1)
        return workers[-1]

    yield start
    for worker in workers:
        worker.send_signal(signal.SIGCONT)
        worker.kill()
        worker.wait()


@pytest.fixture
def client(broker) -> Iterator[Client]:
    with Client(broker.location, request_timeout=2 * DEADLINE) as client:
        yield client


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_a_worker_answers_what_a_client_asks(broker, hire, client):
    hire()
    assert client.request("add", 2, 3) == 5
    assert client.request("later", "x") == "x"
    with pytest.raises(RequestFailed, match="ZeroDivisionError") as failed:
        client.request("divide", 1, 0)
    assert "in divide" in failed.value.traceback
    assert broker.stats()["done"] == 3


def test_jobs_wait_for_a_worker(broker, hire, client):
    futures = [client.submit("add", n, n) for n in range(20)]
    wait_until(lambda: broker.stats()["waiting"] == 20)
    hire(4)
    assert [future.result(DEADLINE) for future in futures] == [2 * n for n in range(20)]


def test_jobs_go_to_all_workers_and_each_is_done_once(broker, hire, client, tmp_path):
    for _ in range(3):
        hire(8)
    futures = [client.submit("note", n) for n in range(600)]
    assert [future.result(2 * DEADLINE) for future in futures] == list(range(600))
    pids = {client.request("pid") for _ in range(3)}
    assert Counter(text(tmp_path / "log").split()) == Counter(str(n) for n in range(600))
    assert len(pids) == 3, "the least recently used comes first"


def test_a_killed_workers_job_is_given_to_another(broker, hire, client, tmp_path):
    first = hire()
    future = client.submit("hang")
    wait_until((tmp_path / "began-1").exists)
    hire()
    first.kill()
    wait_until((tmp_path / "began-2").exists)
    (tmp_path / "release").touch()
    attempt, pid = future.result(DEADLINE)
    assert attempt == 2
    assert pid != first.pid
    assert broker.stats()["requeued"] == 1


def test_a_long_job_does_not_run_twice(broker, hire, client, tmp_path):
    """It takes longer than the lease, which the worker renews all the while."""
    hire()
    hire()
    future = client.submit("hang")
    wait_until((tmp_path / "began-1").exists)
    with pytest.raises(TimeoutError):
        future.result(3.0)
    (tmp_path / "release").touch()
    assert future.result(DEADLINE)[0] == 1
    assert not (tmp_path / "began-2").exists()


def test_a_broker_that_had_no_time_to_listen_takes_nobody_for_dead(crossing_location, tmp_path):
    """Not even its keeper had: what the worker says meanwhile is still to be read."""
    with (
        Broker(crossing_location, lease=1.0, threaded=False) as broker,
        running(broker),
        Client(broker.location) as client,
        ExitStack() as ends,
    ):
        worker = start_worker(broker.location.url, tmp_path)
        ends.callback(worker.wait)
        ends.callback(worker.kill)
        future = client.submit("hang", timeout=2 * DEADLINE)
        wait_until((tmp_path / "began-1").exists)
        broker.server.add_listener("dawdle", lambda: time.sleep(1.5))  # Longer than the lease, and in its tick.
        client.emit("dawdle")
        assert client.flush(DEADLINE)
        (tmp_path / "release").touch()
        assert future.result(DEADLINE)[0] == 1
        assert broker.stats()["requeued"] == 0


def test_the_result_of_a_lost_lease_is_refused(broker, hire, client, tmp_path):
    first = hire()
    future = client.submit("hang")
    wait_until((tmp_path / "began-1").exists)
    hire()
    first.send_signal(signal.SIGSTOP)
    wait_until((tmp_path / "began-2").exists)
    (tmp_path / "release").touch()
    assert future.result(DEADLINE)[0] == 2
    first.send_signal(signal.SIGCONT)
    wait_until(lambda: broker.stats()["stale"] == 1)
    assert broker.stats()["done"] == 1


def test_a_job_that_kills_its_workers_is_a_dead_letter(broker, hire, client, tmp_path):
    future = client.submit("hang")
    for attempt in (1, 2, 3):
        hire()
        wait_until(lambda told=tmp_path / f"began-{attempt}": text(told))
        os.kill(int(text(tmp_path / f"began-{attempt}")), signal.SIGKILL)
        wait_until(lambda: broker.stats()["workers"] == 0)
    with pytest.raises(DeadLetter, match="3 workers died of 'hang'"):
        future.result(DEADLINE)
    assert broker.dead_letters == (("hang", (), {}, 3),)
    hire()
    assert client.request("add", 1, 1) == 2


def test_progress_comes_back(hire, client):
    hire()
    told: list[tuple[int, int]] = []
    assert client.request("tell", 3, on_progress=lambda done, total: told.append((done, total))) == "told"
    wait_until(lambda: told == [(1, 3), (2, 3), (3, 3)])


def test_what_nobody_takes_ends_by_its_deadline(broker, hire, client):
    hire()
    with pytest.raises(RequestTimeout):
        client.request("sing", timeout=0.1)
    wait_until(lambda: broker.stats()["waiting"] == 0)


def test_a_cancelled_job_is_dropped(broker, client):
    future = client.submit("add", 1, 1)
    wait_until(lambda: broker.stats()["waiting"] == 1)
    assert future.cancel()
    wait_until(lambda: broker.stats()["waiting"] == 0)
    assert broker.stats()["cancelled"] == 1


def test_the_jobs_of_a_client_that_ends_are_dropped(broker):
    with Client(broker.location) as client:
        client.submit("add", 1, 1)
        wait_until(lambda: broker.stats()["waiting"] == 1)
    wait_until(lambda: broker.stats()["waiting"] == 0)


def test_clients_have_their_turns(broker, hire, client, tmp_path):
    with Client(broker.location) as other:
        many = [client.submit("note", n) for n in range(100)]
        wait_until(lambda: broker.stats()["waiting"] == 100)
        one = other.submit("note", -1)
        wait_until(lambda: broker.stats()["waiting"] == 101)
        hire()
        assert one.result(DEADLINE) == -1
        assert [future.result(DEADLINE) for future in many] == list(range(100))
    assert text(tmp_path / "log").split().index("-1") <= 1


def test_a_broker_drains(crossing_location, tmp_path):
    with Broker(crossing_location) as broker, Client(broker.location) as client:
        worker = start_worker(broker.location.url, tmp_path)
        try:
            future = client.submit("hang")
            wait_until(lambda: (broker.tick() and False) or (tmp_path / "began-1").exists())
            (tmp_path / "release").touch()
            assert broker.drain(DEADLINE)
            refused = client.submit("add", 1, 1)
            wait_until(lambda: (broker.tick() and False) or (future.done() and refused.done()))
            assert future.result()[0] == 1
            with pytest.raises(RequestError, match="draining"):
                refused.result()
        finally:
            worker.kill()
            worker.wait()


def test_a_full_broker_refuses(crossing_location):
    with Broker(crossing_location, queue=2) as broker, running(broker), Client(broker.location) as client:
        futures = [client.submit("add", n, n) for n in range(3)]
        with pytest.raises(RequestError, match="the broker is full"):
            futures[2].result(DEADLINE)


def test_a_worker_that_stops_gives_back_what_it_has_not_begun(broker, client, tmp_path, hire):
    began, go = threading.Event(), threading.Event()
    worker = Worker(broker.location, capacity=10)

    @worker.on("note")
    def note(number: int) -> str:
        began.set()
        go.wait(DEADLINE)
        return f"first {number}"

    thread = threading.Thread(target=worker.run)
    thread.start()
    futures = [client.submit("note", n) for n in range(5)]
    assert began.wait(DEADLINE)
    wait_until(lambda: broker.stats()["in_hand"] == 5)
    worker.stop()
    go.set()
    thread.join(DEADLINE)
    worker.close()
    assert futures[0].result(DEADLINE) == "first 0"
    wait_until(lambda: broker.stats()["workers"] == 0)
    hire()
    assert [future.result(DEADLINE) for future in futures[1:]] == [1, 2, 3, 4]


def test_who_stops_before_the_run_has_begun_is_heard(crossing_location):
    with Broker(crossing_location) as broker:
        broker.stop()
        broker.run()
        with running(broker), Worker(broker.location) as worker:
            worker.add_handler("note", print)
            worker.stop()
            worker.run()


def test_several_threads_work_at_once(broker, client):
    together = threading.Barrier(3)
    with Worker(broker.location, threads=3) as worker:
        worker.add_handler("meet", lambda: together.wait(DEADLINE))
        thread = threading.Thread(target=worker.run)
        thread.start()
        futures = [client.submit("meet") for _ in range(3)]
        assert sorted(future.result(DEADLINE) for future in futures) == [0, 1, 2]
        worker.stop()
        thread.join(DEADLINE)


def test_a_worker_that_goes_on_after_an_interruption_owes_nothing(broker, client):
    begun: list[int] = []

    def interrupted() -> str:
        begun.append(1)
        if len(begun) == 1:
            raise KeyboardInterrupt
        return "done"

    def run() -> None:
        with pytest.raises(KeyboardInterrupt):
            worker.run()
        worker.run()

    with Worker(broker.location) as worker:
        worker.add_handler("once", interrupted)
        thread = threading.Thread(target=run)
        thread.start()
        with pytest.raises(RequestFailed, match="KeyboardInterrupt"):
            client.request("once", timeout=10)
        assert client.request("once", timeout=10) == "done"
        worker.stop()
        thread.join(DEADLINE)


def test_a_worker_needs_handlers_and_a_capacity(crossing_location):
    with pytest.raises(ValueError, match="threads must be at least 1"):
        Worker(crossing_location, threads=0)
    with pytest.raises(ValueError, match="at least threads"):
        Worker(crossing_location, threads=3, capacity=2)
    with pytest.raises(ValueError, match="without a handler"):
        Worker(crossing_location).run()


def outcome(client: Client, size: int) -> str:
    """Ask a worker for the size of so many bytes, and say what came of it."""
    try:
        assert client.request("size", b"x" * size) == size
    except FrameTooLarge:
        return "by the client"
    except RequestFailed as error:
        return error.type_name
    return "size"


def test_a_job_or_an_answer_that_fits_no_frame_is_told_and_the_broker_goes_on(broker, hire, client):
    """What a client may just send can be too large with what the broker adds to it for the worker."""
    hire()
    largest = client_io(client).outbox.max_frame - HEAD_BYTES
    outcomes = Counter(outcome(client, largest - spare) for spare in range(24, 64, 4))
    assert outcomes.keys() == {"size", "by the client", "remit.errors.FrameTooLarge"}
    options = {**dict(broker.location.options), "max_frame": "64KiB"}
    narrow = Client(broker.location.replace(options=options))
    with narrow, pytest.raises(RequestFailed, match="FrameTooLarge"):
        narrow.request("spread", 100_000, timeout=DEADLINE)
    assert client.request("add", 2, 3) == 5
    assert broker.stats()["in_hand"] == 0
