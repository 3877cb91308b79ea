"""Open requests of one client session, with their deadlines.

| event                                | effect on a request                                           |
|--------------------------------------|---------------------------------------------------------------|
| reply received, or caller gave up    | `pop`                                                         |
| deadline passed                      | `expired`                                                     |
| connection lost, or server restarted | `lost`, if it was sent and is not idempotent                  |
| server restarted                     | `resendable`, if it is idempotent and no longer in the outbox |
| session refused, or client closed    | `snapshot`                                                    |
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
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

    # Any thread may call `add` and `pop`: a single operation on the dict is atomic. The other methods belong to the
    # thread that owns the link. They leave a request open: it is popped after its result is set, so that an interrupt
    # in between loses none.

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

    def lost(self, may_have_run: Callable[[TrackedEvent], bool]) -> list[Request[Waiter]]:
        """Return the requests that may have run and are not idempotent."""
        return [each for each in self.snapshot() if not each.idempotent and may_have_run(each.data)]

    def resendable(self, is_done: Callable[[TrackedEvent], bool]) -> list[Request[Waiter]]:
        """Return the idempotent requests that the outbox no longer holds."""
        return [each for each in self.snapshot() if each.idempotent and is_done(each.data)]

    def expired(self, now: float) -> Iterator[Request[Waiter]]:
        """Yield the requests whose deadline has passed. The caller pops each before it takes the next."""
        for identifier in self.deadlines.pop_due(now):
            request = self.get(identifier)
            if request is not None:
                yield request

    @property
    def next_deadline(self) -> float:
        """The earliest deadline of an open request, or infinity."""
        # Compacted here, by the consumer of the heap, because `pop` may run in any thread.
        self.deadlines.compact(len(self._open))
        return self.deadlines.next_deadline()
