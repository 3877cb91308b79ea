"""Reuse: calls per second of processes that serve many, against the pools that a user would take instead."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

from bench.cases import Case, Table, location
from bench.processes import alone, installed, timed
from bench.work import double

TABLE = Table("reused processes: a pickled callable with an argument, a result returned, a future a task")
SINGLE = Table("reused processes: one call at a time")
TASKS = 20_000
ONE_BY_ONE = 1_000
WORKERS = os.cpu_count() or 1
MULTIPROCESSING, EXECUTOR = "multiprocessing.Pool.apply_async", "ProcessPoolExecutor.submit"
PEERS = {"loky": "loky.submit", "pebble": "pebble.ProcessPool.schedule", "mpire": "mpire.WorkerPool.apply_async"}
TARGETS = ((MULTIPROCESSING, 1.5), (EXECUTOR, 4.0))
SCHEMES = ("unix", "zmq+ipc", "zmq+tcp", "nng+ipc", "redis")
Submit = Callable[[int], Any]
"""Asks for a number to be doubled; returns what has a ``result`` or a ``get``."""


def cases() -> list[Case]:
    """Return the rows; those of libraries that are not installed are left out, with a word."""
    peers = [name for name in PEERS if installed(name)]
    theirs = ((MULTIPROCESSING, "pool"), (EXECUTOR, "executor"), *((PEERS[name], name) for name in peers))
    return [
        *(Case(TABLE, name, partial(rate, kind)) for name, kind in theirs),
        *(
            Case(
                TABLE,
                f"doorman.Crew.submit {scheme}",
                partial(rate, "crew", scheme),
                TARGETS if scheme == "unix" else tuple((name, None) for name, _ in TARGETS),
            )
            for scheme in SCHEMES
        ),
        Case(TABLE, "doorman.ProcessExecutor.submit unix", partial(rate, "process_executor", "unix"), TARGETS),
        *(Case(SINGLE, f"{name}, alone", partial(rate, kind, "", "one_by_one")) for name, kind in theirs[:2]),
        *(
            Case(
                SINGLE,
                f"doorman.{name}, alone",
                partial(rate, kind, "unix", "one_by_one"),
                tuple((f"{other}, alone", None) for other, _ in TARGETS),
            )
            for name, kind in (("Crew.submit", "crew"), ("ProcessExecutor.submit", "process_executor"))
        ),
    ]


def rate(kind: str, scheme: str = "", how: str = "all_at_once") -> float:
    """Run `measured` in an interpreter of its own."""
    return alone("measured", kind, scheme, how, module="reuse")


def measured(kind: str, scheme: str, how: str) -> float:
    """Return the calls per second of one kind of pool."""
    with globals()[kind](scheme) as submit:
        for number in range(WORKERS * 50):
            assert _value(submit(number)) == double(number)
        if how == "one_by_one":
            return timed(ONE_BY_ONE, lambda: [_value(submit(number)) for number in range(ONE_BY_ONE)])
        return timed(TASKS, lambda: [_value(each) for each in [submit(number) for number in range(TASKS)]])


def _value(asked: Any) -> int:
    return asked.get() if hasattr(asked, "get") else asked.result()


@contextmanager
def pool(_: str) -> Iterator[Submit]:
    with multiprocessing.Pool(WORKERS) as workers:
        yield lambda number: workers.apply_async(double, (number,))


@contextmanager
def executor(_: str) -> Iterator[Submit]:
    with ProcessPoolExecutor(WORKERS) as workers:
        yield lambda number: workers.submit(double, number)


@contextmanager
def loky(_: str) -> Iterator[Submit]:
    from loky import get_reusable_executor

    workers = get_reusable_executor(max_workers=WORKERS)
    yield lambda number: workers.submit(double, number)
    workers.shutdown()


@contextmanager
def pebble(_: str) -> Iterator[Submit]:
    from pebble import ProcessPool

    with ProcessPool(max_workers=WORKERS) as workers:
        yield lambda number: workers.schedule(double, args=(number,))


@contextmanager
def mpire(_: str) -> Iterator[Submit]:
    from mpire import WorkerPool

    with WorkerPool(n_jobs=WORKERS) as workers:
        yield lambda number: workers.apply_async(double, args=(number,))


@contextmanager
def crew(scheme: str) -> Iterator[Submit]:
    from doorman import Crew, ProcessManager

    with (
        tempfile.TemporaryDirectory(prefix="remit-") as folder,
        ProcessManager(location(scheme, folder)) as manager,
        Crew(manager, WORKERS) as workers,
    ):
        yield lambda number: workers.submit(double, number)


@contextmanager
def process_executor(scheme: str) -> Iterator[Submit]:
    from doorman import ProcessExecutor

    with (
        tempfile.TemporaryDirectory(prefix="remit-") as folder,
        ProcessExecutor(WORKERS, location=location(scheme, folder)) as workers,
    ):
        yield lambda number: workers.submit(double, number)
