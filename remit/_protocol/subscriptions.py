"""Queue of publications for one subscriber: numbered, bounded, with the when_full policies."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

POLICIES: Final = ("drop_oldest", "drop_newest", "unsubscribe")
"""Values of when_full for a slow subscriber. There is no "block": a publisher never waits for a subscriber."""


class SubscriberQueue:
    """Queue of one subscriber. Dropped publications are numbered too, so that the subscriber detects the gap."""

    def __init__(
        self,
        identifier: int,
        matches: Callable[[str], object],
        *,
        queue: int,
        queue_bytes: int,
        when_full: str,
        max_lag: float | None,
    ) -> None:
        self.id = identifier
        self.matches = matches
        self.dropped = 0
        self.ended = ""
        """Why the server ended the subscription; empty while it is active."""
        self.bytes = 0
        """Bytes of the publications in the queue."""
        self._limit = queue
        self._limit_bytes = queue_bytes
        self._when_full = when_full
        self._max_lag = max_lag
        self._last_number = 0
        self._newest: bytes | None = None
        """The last publication that was numbered."""
        self._queue: deque[tuple[float, int, bytes]] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def enqueue(self, publication: bytes, now: float) -> None:
        """Number and queue an encoded publication; if the queue is full, apply the policy."""
        if publication is self._newest:
            return  # Repeated after an interrupt.
        number, wanted = self._last_number + 1, not self.ended
        # A single publication is accepted at any size: the frame limits it.
        while (
            wanted
            and self._queue
            and ((crowded := len(self._queue) >= self._limit) or self.bytes + len(publication) > self._limit_bytes)
        ):
            if self._when_full == "unsubscribe":
                bound = f"{self._limit} publications" if crowded else f"{self._limit_bytes} bytes of publications"
                self._end(f"more than {bound} waited")
                return
            self.dropped += 1
            wanted = self._when_full == "drop_oldest"
            if wanted:
                self._pop()
        if wanted:
            self._queue.append((now, number, publication))
            self.bytes += len(publication)
        self._last_number, self._newest = number, publication

    def repair(self) -> None:
        """Continue after an interrupt in any method."""
        self.bytes = sum(len(publication) for _, _, publication in self._queue)

    def pop_publications(self, at_most: int, max_bytes: int, now: float) -> Iterator[tuple[int, bytes]]:
        """Yield the oldest publications with their numbers: ``at_most``, and until ``max_bytes`` are reached.

        Drop publications beyond max_lag.
        """
        while self._queue and at_most > 0 and max_bytes > 0:
            queued_at, number, publication = self._queue[0]
            if self._max_lag is not None and now - queued_at > self._max_lag:
                self.dropped += 1
                self._pop()
                if self._when_full == "unsubscribe":
                    self._end(f"a publication waited for more than max_lag ({self._max_lag} s)")
                    return
                continue
            at_most -= 1
            max_bytes -= len(publication)
            yield number, publication
            self._pop()  # After the caller has used it: an interrupt in between repeats it.

    def _pop(self) -> tuple[float, int, bytes]:
        popped = self._queue.popleft()
        self.bytes -= len(popped[2])
        return popped

    def _end(self, reason: str) -> None:
        self.dropped += len(self._queue)
        self._queue.clear()
        self.bytes = 0
        self.ended = reason
