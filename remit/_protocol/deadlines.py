"""Timetable: what comes due, and when; so that a wait knows how long it may last."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

__all__ = ["DeadlineHeap"]


T = TypeVar("T")


class DeadlineHeap(Generic[T]):
    """Things in the order in which they come due. What counts no more is there until then, or until `tidy`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: list[tuple[float, int, T]] = []
        self._serial = 0

    def expect(self, what: T, seconds: float) -> None:
        """Let something come due in so many seconds."""
        self._serial += 1
        heapq.heappush(self._entries, (self._clock() + seconds, self._serial, what))

    def __len__(self) -> int:
        return len(self._entries)

    def tidy(self, counts: Callable[[T], bool]) -> None:
        """Take out what does not count any more."""
        self._entries = [entry for entry in self._entries if counts(entry[2])]
        heapq.heapify(self._entries)

    def due(self) -> Iterator[T]:
        """Yield what has come due since the last call."""
        while self._entries and self._entries[0][0] <= self._clock():
            yield heapq.heappop(self._entries)[2]

    def patience(self, most: float) -> float:
        """Return the seconds until something comes due, ``most`` at the most."""
        return max(0.0, min(most, self._entries[0][0] - self._clock())) if self._entries else most
