"""Heap of deadlines whose dead entries are removed lazily."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, Generic, TypeVar

T = TypeVar("T")
SPARE_ENTRIES: Final = 64
"""Dead entries that `compact` always leaves: a rebuild for fewer would cost more than it frees."""


class DeadlineHeap(Generic[T]):
    """Items in the order of their deadlines. ``is_live`` returns False for an item that no longer has a deadline."""

    # Removal is lazy: a search in a heap is O(n), while a dead entry costs one comparison when it reaches the top.
    # `compact` bounds the number of dead entries behind a distant deadline.

    def __init__(self, is_live: Callable[[T], bool] = lambda _: True) -> None:
        self._is_live = is_live
        self._heap: list[tuple[float, int, T]] = []
        # Hand-over between threads: any thread may schedule, but only the consumer (one thread at a time, under
        # the lock of its owner) touches the heap. Otherwise the consumer could find a dead entry on top, and pop
        # the live one that another thread has pushed in between: its deadline would be lost. append() is atomic.
        self._scheduled: deque[tuple[float, T]] = deque()
        # The tie-breaker, so that items are never compared. Not itertools.count: a heap may have to be pickled.
        self._serial = 0

    def __len__(self) -> int:
        """Return the number of entries, dead ones included."""
        return len(self._heap) + len(self._scheduled)

    def schedule(self, deadline: float, item: T) -> None:
        """Add an item. Safe from any thread."""
        self._scheduled.append((deadline, item))

    def is_due(self, now: float) -> bool:
        """Return False if `pop_due` would yield nothing."""
        return bool(self._scheduled) or (bool(self._heap) and self._heap[0][0] <= now)

    def pop_due(self, now: float) -> Iterator[T]:
        """Remove and yield the live items whose deadline has passed, earliest first.

        An item is removed when the next one is requested, so that an interrupt of its consumer does not lose it.
        """
        self._merge()
        while self._heap and self._heap[0][0] <= now:
            entry = self._heap[0]
            if self._is_live(entry[2]):
                yield entry[2]
            if self._heap and self._heap[0] is entry:
                heapq.heappop(self._heap)
            elif entry in self._heap:  # The consumer has scheduled an earlier one.
                self._heap.remove(entry)
                heapq.heapify(self._heap)

    def next_deadline(self) -> float:
        """Return the earliest deadline of a live item, or infinity."""
        if self._scheduled:
            self._merge()
        heap = self._heap
        while heap and not self._is_live(heap[0][2]):
            heapq.heappop(heap)
        return heap[0][0] if heap else float("inf")

    def next_timeout(self, now: float, at_most: float) -> float:
        """Return the seconds until the next deadline, between 0 and ``at_most``."""
        return max(0.0, min(at_most, self.next_deadline() - now))

    def compact(self, live: int) -> None:
        """Rebuild the heap if most of its entries are dead, given how many items are ``live``. Amortized O(1)."""
        if len(self._heap) + len(self._scheduled) > 2 * live + SPARE_ENTRIES:
            self._merge()
            self._heap = [entry for entry in self._heap if self._is_live(entry[2])]
            heapq.heapify(self._heap)

    def _merge(self) -> None:
        while self._scheduled:
            # Pushed before it is removed: an interrupt in between repeats an entry, but loses none.
            deadline, item = self._scheduled[0]
            self._serial += 1
            heapq.heappush(self._heap, (deadline, self._serial, item))
            self._scheduled.popleft()
