"""Cases: a row of a table: a name, how it is run, what it is compared with, and what it should reach."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Case", "Table", "location", "redis_url", "two_processes"]

BOUND = 120.0
"""Seconds after which a case that has not ended is given up."""


@dataclass(frozen=True)
class Table:
    """A table: what its figures are, and which of two is better."""

    title: str
    unit: str = "per second"
    less_is_better: bool = False


@dataclass(eq=False)
class Case:
    """One row. ``run`` returns a figure in the table's unit; ``targets`` are ratios to what it is compared with."""

    table: Table
    name: str
    run: Callable[[], float]
    targets: tuple[tuple[str, float | None], ...] = ()
    bound: float | None = None
    """What the figure itself should not exceed."""


def redis_url() -> str:
    """Return the server that this run of the benchmarks uses."""
    return os.environ["REMIT_REDIS_URL"]


def location(scheme: str, folder: str) -> str:
    """Return a fresh place of a transport."""
    if scheme == "redis":
        return f"{redis_url()}?prefix=bench{os.getpid()}-{time.time_ns()}"
    return f"{scheme}://127.0.0.1:0" if scheme.endswith("+tcp") else f"{scheme}://{Path(folder) / 's'}"


def two_processes(receive: Callable[..., None], send: Callable[..., None], *args: Any) -> float:
    """Run ``receive(pipe, *args)`` and ``send(pipe, address, *args)`` in fresh interpreters; return the rate.

    The receiver first sends its address. Each then sends numbers of the monotonic clock, which all processes share:
    the sender its start, both their end; the receiver also how many it handled.
    """
    with Processes() as processes:
        ours = processes.start(receive, *args)
        address = processes.take(ours)
        sender = processes.start(send, address, *args)
        start = processes.take(sender)
        sender_end = processes.take(sender)
        receiver_end, handled = processes.take(ours)
    return handled / (max(sender_end, receiver_end) - start)


class Processes:
    """Fresh interpreters that run functions, each with one end of a pipe as its first argument."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._running: list[Any] = []

    def start(self, function: Callable[..., None], *args: Any) -> Any:
        """Start one, and return our end of its pipe."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=function, args=(theirs, *args), daemon=True)
        process.start()
        theirs.close()
        self._running.append(process)
        return ours

    def take(self, pipe: Any) -> Any:
        """Return what a process says next."""
        if not pipe.poll(BOUND):
            raise TimeoutError(f"no answer within {BOUND} s")
        return pipe.recv()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._running:
            process.join(0.0 if exception[0] else 5.0)
            if process.is_alive():
                process.kill()
                process.join()
