"""Inbox: one direction of a session, on the receiving side: de-duplicate, keep order, know what is done.

Two numbers are enough for any number of events: frames of one peer arrive in order, so what may be admitted next is
always ``received + 1``; lower is a duplicate, higher means that something is missing.
"""

from __future__ import annotations

from typing import TypeVar

__all__ = ["Inbox"]

T = TypeVar("T")


class Inbox:
    """What has come in: ``received`` were admitted, ``done`` have been handled."""

    __slots__ = ("done", "duplicates", "received")

    def __init__(self, received: int = 0) -> None:
        self.received = received
        self.done = received
        self.duplicates = 0

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
        self.done += count
