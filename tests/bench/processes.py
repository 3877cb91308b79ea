"""Processes: fresh, proven processes per second against what starts processes without proving anything."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from bench.cases import Case, Skipped
from bench.emit import redis_url

TABLE = "fresh processes: a pickled callable with an argument, a result returned"
TASKS = 400
TOGETHER = 8
BARE = "bare fork, _exit and wait: no callable, no result"
POOL = "ProcessPoolExecutor(max_tasks_per_child=1)"


def cases() -> list[Case]:
    """Return the rows."""
    return [
        Case(TABLE, BARE, bare_fork),
        Case(TABLE, POOL, executor, (BARE,)),
        Case(TABLE, "subprocess: python -c", interpreter, (BARE,)),
        *(
            Case(TABLE, f"doorman {scheme}", partial(doorman, scheme), (BARE, POOL, "subprocess: python -c"))
            for scheme in ("unix", "zmq+ipc", "zmq+tcp", "nng+ipc", "redis")
        ),
    ]


def double(number: int) -> int:
    """The work of each task."""
    return number * 2


def timed(tasks: int, work: Callable[[], list[int]]) -> float:
    """Return how many tasks per second, after checking every result."""
    start = time.monotonic()
    results = work()
    seconds = time.monotonic() - start
    assert results == [double(number) for number in range(tasks)]
    return tasks / seconds


def bare_fork() -> float:
    """Return forks per second, `TOGETHER` at once, from a process as small as the zygote."""
    code = (
        "import os, time, gc\n"
        "gc.collect(); gc.freeze()\n"
        f"tasks, together, running = {TASKS * 3}, {TOGETHER}, 0\n"
        "start = time.monotonic()\n"
        "for _ in range(tasks):\n"
        "    if os.fork() == 0: os._exit(0)\n"
        "    running += 1\n"
        "    if running >= together: os.wait(); running -= 1\n"
        "while running: os.wait(); running -= 1\n"
        "print(tasks / (time.monotonic() - start))\n"
    )
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def executor() -> float:
    """Return the rate of the standard library's pool with a fresh process for each task."""
    tasks = 60
    import multiprocessing

    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context, max_tasks_per_child=1) as pool:
        assert pool.submit(double, 1).result() == 2
        return timed(tasks, lambda: [future.result() for future in [pool.submit(double, n) for n in range(tasks)]])


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


def doorman(scheme: str) -> float:
    """Return the rate of proven processes over a transport, default options."""
    from doorman import ProcessManager, Task

    with tempfile.TemporaryDirectory(prefix="remit-") as folder:
        if scheme == "redis":
            location = f"{redis_url()}?prefix=bench{time.time_ns()}"
        elif scheme.endswith("+tcp"):
            location = f"{scheme}://127.0.0.1:0"
        else:
            location = f"{scheme}://{Path(folder) / 's'}"
        try:
            manager = ProcessManager(location)
        except ImportError as error:
            raise Skipped(str(error)) from error
        with manager:
            warm = manager.add_task(Task(double, 1))
            assert warm.result(30) == 2

            def work() -> list[int]:
                tasks = [manager.add_task(Task(double, number)) for number in range(TASKS)]
                manager.run(120)
                assert all(task.identity is not None for task in tasks)
                return [task.result(0) for task in tasks]

            return timed(TASKS, work)
