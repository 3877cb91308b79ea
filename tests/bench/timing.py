"""Timing: the round trips of one asker, and events at a steady pace."""

from __future__ import annotations

import statistics
import time
from typing import Any

REQUESTS = 2000
EVENTS = 1000


def median(seconds: list[float]) -> float:
    """Return the median in microseconds, the first tenth left out."""
    return statistics.median(seconds[len(seconds) // 10 :]) * 1e6


def timed(ask: Any) -> float:
    """Return the median time of one question and its answer."""
    spent = []
    for number in range(REQUESTS):
        start = time.perf_counter()
        ask(number)
        spent.append(time.perf_counter() - start)
    return median(spent)


def pace(emit: Any) -> None:
    """Call it a thousand times a second."""
    due = time.monotonic()
    for _ in range(EVENTS):
        due += 0.001
        time.sleep(max(0.0, due - time.monotonic()))
        emit()
