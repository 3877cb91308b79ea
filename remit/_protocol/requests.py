"""Open requests of one client session, with their deadlines.

| event                                | effect on a request                                           |
|--------------------------------------|---------------------------------------------------------------|
| reply received, or caller gave up    | `pop`                                                         |
| deadline passed                      | `pop_expired`                                                 |
| connection lost, or server restarted | `pop_lost`, if it was sent and is not idempotent              |
| server restarted                     | `resendable`, if it is idempotent and no longer in the outbox |
| session refused, or client closed    | `pop_all`                                                     |
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from remit._protocol.deadlines import DeadlineHeap
from remit._protocol.outbox import TrackedEvent

Waiter = TypeVar("Waiter")


@dataclass(slots=True, eq=False)
class Request(Generic[Waiter]):
    """One open request."""

    id: int
    name: str
    waiter: Waiter
    """Receiver of the result. Never used here."""
    idempotent: bool
    data: TrackedEvent = field(default_factory=TrackedEvent)
    """The encoded event."""
    note: str = ""
    """Why it waits, according to the server."""


class OpenRequests(Generic[Waiter]):
    """The open requests of one session. The first event that ends a request removes it; later ones find nothing."""

    # Any thread may call `add` and `pop`: a single operation on the dict is atomic, and the thread that pops a request
    # is the only one that sets its result. The other methods belong to the thread that owns the link.

    def __init__(self) -> None:
        self._open: dict[int, Request[Waiter]] = {}
        self.deadlines: DeadlineHeap[int] = DeadlineHeap(self._open.__contains__)
        self._ids = itertools.count(1)

    def __len__(self) -> int:
        return len(self._open)

    def add(self, name: str, waiter: Waiter, deadline: float, *, idempotent: bool) -> Request[Waiter]:
        """Add a request and return it with its id."""
        request = Request(next(self._ids), name, waiter, idempotent)
        self._open[request.id] = request
        if deadline != float("inf"):
            self.deadlines.schedule(deadline, request.id)
        return request

    def pop(self, identifier: int) -> Request[Waiter] | None:
        """Remove and return a request, or return None if it is no longer open."""
        return self._open.pop(identifier, None)

    def get(self, identifier: int) -> Request[Waiter] | None:
        """Return an open request, or None."""
        return self._open.get(identifier)

    def snapshot(self) -> tuple[Request[Waiter], ...]:
        """Return the open requests."""
        return tuple(self._open.values())

    def pop_lost(self, may_have_run: Callable[[TrackedEvent], bool]) -> list[Request[Waiter]]:
        """Remove and return the requests that may have run and are not idempotent."""
        lost = [each for each in self.snapshot() if not each.idempotent and may_have_run(each.data)]
        return [each for each in lost if self.pop(each.id) is not None]

    def resendable(self, is_done: Callable[[TrackedEvent], bool]) -> list[Request[Waiter]]:
        """Return the idempotent requests that the outbox no longer holds."""
        return [each for each in self.snapshot() if each.idempotent and is_done(each.data)]

    def pop_expired(self, now: float) -> list[Request[Waiter]]:
        """Remove and return the requests whose deadline has passed."""
        popped = (self.pop(identifier) for identifier in self.deadlines.pop_due(now))
        return [request for request in popped if request is not None]

    def pop_all(self) -> list[Request[Waiter]]:
        """Remove and return all requests."""
        popped = (self.pop(each.id) for each in self.snapshot())
        return [request for request in popped if request is not None]

    @property
    def next_deadline(self) -> float:
        """The earliest deadline of an open request, or infinity."""
        # Compacted here, by the consumer of the heap, because `pop` may run in any thread.
        self.deadlines.compact(len(self._open))
        return self.deadlines.next_deadline()
