"""Pool: a broker and workers that are replaced when they die, over every transport."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from chores import answer, die
from waiting import DEADLINE, wait_until

from doorman import State, WorkerPool
from doorman.errors import PoolFailed, RestartedTooOften
from remit import Client


@contextmanager
def running(pool: WorkerPool) -> Iterator[WorkerPool]:
    thread = threading.Thread(target=pool.run)
    thread.start()
    try:
        yield pool
    finally:
        pool.stop()
        thread.join(DEADLINE)


def test_all_workers_answer_and_a_dead_one_is_replaced(crossing_location):
    with (
        WorkerPool(answer, processes=3, location=crossing_location) as pool,
        running(pool),
        Client(pool.location) as client,
    ):
        answers = [client.submit("job", number) for number in range(60)]
        assert [each.result(DEADLINE)[0] for each in answers] == [2 * number for number in range(60)]
        wait_until(lambda: pool.broker.stats()["workers"] == 3)
        pids = {client.request("job", 0)[1] for _ in range(6)}
        assert len(pids) == 3
        victim = pids.pop()
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: all(worker.identity and worker.identity.pid != victim for worker in pool.workers))
        answers = [client.submit("job", number) for number in range(60)]
        assert [each.result(DEADLINE)[0] for each in answers] == [2 * number for number in range(60)]


def test_several_handlers_and_a_drain(short_path):
    handlers = {"answer": answer, "div": divmod}
    with (
        WorkerPool(handlers, processes=1, location=f"unix://{short_path}/p", capacity=10) as pool,
        Client(pool.location) as client,
    ):
        futures = [client.submit("answer", 1), client.submit("div", 7, 2)]
        while pool.broker.stats()["submitted"] < 2:
            pool.tick()
            pool.wait(0.05)
        assert pool.drain(DEADLINE)
        wait_until(lambda: all(future.done() for future in futures))
        assert futures[0].result()[0] == 2
        assert futures[1].result() == [3, 1]


def test_a_pool_whose_workers_only_die_is_given_up(short_path):
    without_handlers: dict[str, Callable[..., object]] = {}  # Each worker ends at once.
    with WorkerPool(without_handlers, processes=1, location=f"unix://{short_path}/p") as pool:
        with pytest.raises(PoolFailed, match=r"a worker died too often: .* more than 10 times within 10 s"):
            pool.run(DEADLINE)
        assert isinstance(pool.workers[0].exception(), RestartedTooOften)


def test_a_cancelled_worker_is_replaced(short_path):
    with WorkerPool(answer, processes=1, location=f"unix://{short_path}/p") as pool, running(pool):
        (worker,) = pool.workers
        worker.future.cancel()
        wait_until(lambda: pool.workers != (worker,))
        assert worker.state is State.CANCELLED
        with Client(pool.location) as client:
            assert client.request("job", 2)[0] == 4


def test_a_pool_has_a_process():
    with pytest.raises(ValueError, match="at least one process"):
        WorkerPool(die, processes=0)
