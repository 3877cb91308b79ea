"""Subscriptions: what a server keeps for those who follow its publications: a queue each, numbered, bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

__all__ = ["POLICIES", "SubscriberQueue", "check_subscription_options"]


POLICIES: Final = ("drop_oldest", "drop_newest", "unsubscribe")
"""What happens to a subscriber that does not keep up. A publisher never waits for one."""


def check_subscription_options(queue: object, when_full: object, max_lag: object) -> None:
    """Raise TypeError or ValueError for what a subscriber may not ask for: each publication would meet it."""
    if isinstance(queue, bool) or not isinstance(queue, int) or queue < 1:
        raise ValueError(f"the queue of a subscription is a whole number, at least 1, not {queue!r}")
    if when_full not in POLICIES:
        raise ValueError(f"when_full of a subscription is one of {', '.join(POLICIES)}, not {when_full!r}")
    if max_lag is not None and (isinstance(max_lag, bool) or not isinstance(max_lag, int | float) or not max_lag >= 0):
        raise ValueError(f"max_lag of a subscription is None or a number of seconds, not {max_lag!r}")


class SubscriberQueue:
    """One subscriber's queue. Numbers are given to all publications, dropped or not, so that a gap shows."""

    def __init__(
        self,
        identifier: int,
        matches: Callable[[str], object],
        *,
        queue: int,
        when_full: str,
        max_lag: float | None,
    ) -> None:
        self.id = identifier
        self.matches = matches
        self.dropped = 0
        self.ended = ""
        """Why it was ended from here; empty while it goes on."""
        self._limit = queue
        self._when_full = when_full
        self._max_lag = max_lag
        self._last = 0
        self._queue: deque[tuple[float, int, bytes]] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def enqueue(self, sealed: bytes, now: float) -> None:
        """Queue a publication, or drop one, or end the subscription, as its policy says."""
        self._last += 1
        if self.ended:
            return
        if len(self._queue) >= self._limit and not self._make_room():
            return
        self._queue.append((now, self._last, sealed))

    def _make_room(self) -> bool:
        if self._when_full == "unsubscribe":
            self._end(f"more than {self._limit} publications waited")
            return False
        self.dropped += 1
        if self._when_full == "drop_newest":
            return False
        self._queue.popleft()
        return True

    def pop_publications(self, most: int, now: float) -> Iterator[tuple[int, bytes]]:
        """Yield up to ``most`` publications with their numbers, oldest first; what is too old is dropped."""
        while self._queue and most > 0:
            sent, number, sealed = self._queue.popleft()
            if self._max_lag is not None and now - sent > self._max_lag:
                self.dropped += 1
                if self._when_full == "unsubscribe":
                    self._end(f"it lagged more than {self._max_lag} s behind")
                    return
                continue
            most -= 1
            yield number, sealed

    def _end(self, why: str) -> None:
        self.dropped += len(self._queue)
        self._queue.clear()
        self.ended = why
