"""Processes: fresh, proven processes per second against what starts processes without proving anything."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

from bench.cases import Case, Table, location
from bench.work import double, loaded

TABLE = Table("fresh processes: a pickled callable with an argument, a result returned")
TASKS = 400
TOGETHER = 8
FORKS = 1200
BARE = "bare fork, _exit, wait"
PROGRAM = "subprocess: python -c"
TARGETS = {"unix": 0.6, "zmq+ipc": 0.35}
POOL = "ProcessPoolExecutor(max_tasks_per_child=1)"
FORKING = "multiprocessing.Pool(maxtasksperchild=1)"
PEERS = {
    "loky": "loky.ProcessPoolExecutor, one for each task",
    "pebble": "pebble.ProcessPool(max_tasks=1)",
    "mpire": "mpire.WorkerPool, one for each task",
}
HEAVY = "numpy"
"""What is expensive to import, for the row that preloads it."""


def cases() -> list[Case]:
    """Return the rows; those of libraries that are not installed are left out, with a word."""
    return [
        Case(TABLE, BARE, partial(alone, "bare_fork")),
        Case(TABLE, POOL, partial(alone, "executor")),
        Case(TABLE, FORKING, partial(alone, "pool")),
        *(Case(TABLE, PEERS[name], partial(alone, name)) for name in PEERS if installed(name)),
        Case(TABLE, PROGRAM, partial(alone, "interpreter")),
        *(
            Case(
                TABLE,
                f"doorman {scheme}",
                partial(alone, "doorman", scheme),
                (
                    (BARE, TARGETS.get(scheme)),
                    (POOL, 8.0 if scheme == "unix" else None),
                    (FORKING, 1.5 if scheme == "unix" else None),
                    (PROGRAM, None),
                ),
            )
            for scheme in ("unix", "zmq+ipc", "zmq+tcp", "nng+ipc", "redis")
        ),
        *(
            Case(TABLE, f"doorman {scheme}, {HEAVY} preloaded", partial(alone, "doorman", scheme, HEAVY), targets)
            for scheme in ("unix", "zmq+ipc")
            if installed(HEAVY)
            for targets in [((f"doorman {scheme}", 0.5),)]
        ),
    ]


def installed(name: str) -> bool:
    """Tell whether a library is there; say what to do if it is not."""
    if importlib.util.find_spec(name) is None:
        print(f"bench: {name} is not installed, its row is left out; try: uv sync --group bench", file=sys.stderr)
        return False
    return True


def alone(function: str, *args: str, module: str = "processes") -> float:
    """Run a function of this module, or of one beside it, in an interpreter whose main module costs nothing."""
    code = f"import sys; from bench import {module}; print({module}.{function}(*sys.argv[1:]))"
    run = subprocess.run([sys.executable, "-c", code, *args], check=True, stdout=subprocess.PIPE, text=True)
    return float(run.stdout)


def timed(tasks: int, work: Callable[[], list[int]]) -> float:
    """Return how many tasks per second, after checking every result."""
    start = time.monotonic()
    results = work()
    seconds = time.monotonic() - start
    assert results == [double(number) for number in range(tasks)]
    return tasks / seconds


def bare_fork() -> float:
    """Return forks per second, `TOGETHER` at once, from a process that has loaded what the zygote has."""
    from doorman._worker.main import prepare
    from doorman.launcher.zygote_process import prepare_for_forks

    prepare("unix")
    prepare_for_forks()
    running = 0
    start = time.monotonic()
    for _ in range(FORKS):
        if os.fork() == 0:
            os._exit(0)
        running += 1
        if running >= TOGETHER:
            os.wait()
            running -= 1
    while running:
        os.wait()
        running -= 1
    return FORKS / (time.monotonic() - start)


def executor() -> float:
    """Return the rate of the standard library's pool with a fresh process for each task."""
    tasks = 100
    import multiprocessing

    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context, max_tasks_per_child=1) as pool:
        assert pool.submit(double, 1).result() == 2
        return timed(tasks, lambda: [future.result() for future in [pool.submit(double, n) for n in range(tasks)]])


def pool() -> float:
    """Return the rate of the standard library's other pool, with a fresh process for each task."""
    import multiprocessing

    with multiprocessing.Pool(os.cpu_count(), maxtasksperchild=1) as workers:
        return spread(100, lambda number: workers.apply_async(double, (number,)).get)


def loky() -> float:
    """Return the rate of an executor for each task: loky's has no limit of tasks for a process."""
    from loky import ProcessPoolExecutor as Executor

    def run(number: int) -> int:
        with Executor(1) as workers:
            return int(workers.submit(double, number).result())

    return one_by_one(20, run)


def pebble() -> float:
    """Return the rate of pebble's pool with a fresh process for each task."""
    from pebble import ProcessPool

    with ProcessPool(max_workers=os.cpu_count(), max_tasks=1) as workers:
        return spread(40, lambda number: workers.schedule(double, args=(number,)).result)


def mpire() -> float:
    """Return the rate of a pool for each task: with ``worker_lifespan=1`` it takes planned ends for deaths."""
    from mpire import WorkerPool

    def run(number: int) -> int:
        with WorkerPool(1) as workers:
            return int(workers.map(double, [number])[0])

    return one_by_one(20, run)


def one_by_one(tasks: int, run: Callable[[int], int]) -> float:
    """Return the rate at which tasks are run, each in a pool of its own."""
    return timed(tasks, lambda: [run(number) for number in range(tasks)])


def spread(tasks: int, submit: Callable[[int], Callable[[], Any]]) -> float:
    """Return the rate at which a pool that has run one task runs more, all submitted at once."""
    assert submit(1)() == double(1)
    return timed(tasks, lambda: [result() for result in [submit(number) for number in range(tasks)]])


def interpreter() -> float:
    """Return the rate of fresh interpreters."""
    tasks = 40

    def work() -> list[int]:
        results: list[int] = []
        running: list[subprocess.Popen[str]] = []
        for number in range(tasks):
            command = [sys.executable, "-c", f"print({number} * 2)"]
            running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            if len(running) >= TOGETHER:
                results.append(int(running.pop(0).communicate()[0]))
        return results + [int(process.communicate()[0]) for process in running]

    return timed(tasks, work)


def doorman(scheme: str, *preload: str) -> float:
    """Return the rate of proven processes over a transport, default options, with modules preloaded or not."""
    from doorman import ProcessManager, Task

    with (
        tempfile.TemporaryDirectory(prefix="remit-") as folder,
        ProcessManager(location(scheme, folder), preload=preload) as manager,
    ):
        warm = [manager.add_task(Task(double, 1)), *(manager.add_task(Task(loaded, name)) for name in preload)]
        assert [task.result(30) for task in warm] == [double(1), *(True for _ in preload)]

        def work() -> list[int]:
            tasks = [manager.add_task(Task(double, number)) for number in range(TASKS)]
            manager.run(120)
            assert all(task.identity is not None for task in tasks)
            return [task.result(0) for task in tasks]

        return timed(TASKS, work)
