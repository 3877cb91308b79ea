"""Inbox: one direction of a session, on the receiving side: de-duplicate, keep order, know what is done.

Two numbers are enough for any number of events: frames of one peer arrive in order, so what may be admitted next is
always ``received + 1``; lower is a duplicate, higher means that something is missing.
"""

from __future__ import annotations

from typing import TypeVar

__all__ = ["Inbox"]

T = TypeVar("T")


class Inbox:
    """What has come in: ``received`` were admitted, ``done`` have been handled.

    `finish` may be called by one other thread than all else: each of the two counts what is its own.
    """

    __slots__ = ("_before", "_handled", "_start", "duplicates", "received")

    def __init__(self, received: int = 0) -> None:
        self.received = received
        self.duplicates = 0
        self._start = received
        self._before = 0
        self._handled = 0

    @property
    def done(self) -> int:
        """The last number up to which all have been handled."""
        return self._start + max(0, self._handled - self._before)

    @property
    def idle(self) -> bool:
        """Whether all that was admitted has been handled."""
        return self.done == self.received

    def restart(self) -> None:
        """Begin with number 1 again, at another server's session; what was admitted before will still be finished."""
        self._before += self.received - self._start
        self.received = self._start = 0

    def missing(self, first: int) -> bool:
        """Whether events before ``first`` have not arrived."""
        return first > self.received + 1

    def admit(self, first: int, events: list[T]) -> list[T]:
        """Return those of the events that are new, to be handled in this order. Not for what is `missing`."""
        known = self.received + 1 - first
        if known > 0:
            self.duplicates += min(known, len(events))
            events = events[known:]
        self.received += len(events)
        return events

    def skip(self, first: int, count: int) -> int:
        """Pass over ``count`` events that nobody can read, as if handled; return how many were new."""
        new = max(0, first + count - 1 - self.received)
        self.received += new
        return new

    def finish(self, count: int) -> None:
        """Note that the listeners of the next ``count`` events have returned."""
        self._handled += count
