"""Cases: a row of a table: a name, how it is run, and what it is compared with."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Case", "redis_url", "two_processes"]

BOUND = 120.0
"""Seconds after which a case that has not ended is given up."""


@dataclass(eq=False)
class Case:
    """One row. ``run`` returns how many per second."""

    table: str
    name: str
    run: Callable[[], float]
    against: tuple[str, ...] = ()


def redis_url() -> str:
    """Return the server that this run of the benchmarks uses."""
    return os.environ["REMIT_REDIS_URL"]


def two_processes(receive: Callable[..., None], send: Callable[..., None], *args: Any) -> float:
    """Run ``receive(pipe, *args)`` and ``send(pipe, address, *args)`` in fresh interpreters; return the rate.

    The receiver first sends its address. Each then sends numbers of the monotonic clock, which all processes share:
    the sender its start, both their end; the receiver also how many it handled.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    sender_ours, sender_theirs = spawn.Pipe()
    receiver = spawn.Process(target=receive, args=(theirs, *args), daemon=True)
    receiver.start()
    theirs.close()
    try:
        address = _take(ours)
        sender = spawn.Process(target=send, args=(sender_theirs, address, *args), daemon=True)
        sender.start()
        sender_theirs.close()
        start = _take(sender_ours)
        sender_end = _take(sender_ours)
        receiver_end, handled = _take(ours)
        sender.join(10)
        receiver.join(10)
    finally:
        for process in (receiver, locals().get("sender")):
            if process is not None and process.is_alive():
                process.kill()
                process.join()
    return handled / (max(sender_end, receiver_end) - start)


def _take(pipe: Any) -> Any:
    if not pipe.poll(BOUND):
        raise TimeoutError(f"no answer within {BOUND} s")
    return pipe.recv()
