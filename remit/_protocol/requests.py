"""Requests: what a client has asked and not heard of yet: who is answered, who is late, who is lost."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Container
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

__all__ = ["OpenRequests", "Request"]


Waiter = TypeVar("Waiter")
SPARE: Final = 64
"""Deadlines of closed questions which are not worth being looked for."""


@dataclass(slots=True, eq=False)
class Request(Generic[Waiter]):
    """One question that is open."""

    id: int
    name: str
    waiter: Waiter
    """Whoever is to be told; the machine never looks at it."""
    deadline: float
    idempotent: bool
    data: bytes = b""
    """The encoded event, by which it is found again in the outbox."""
    queued: bool = False
    """Whether the outbox has got it."""


class OpenRequests(Generic[Waiter]):
    """The open questions of one session. Answers, losses and deadlines each take a question away exactly once."""

    def __init__(self) -> None:
        self._open: dict[int, Request[Waiter]] = {}
        self._dues: list[tuple[float, int]] = []
        self._ids = itertools.count(1)

    def __len__(self) -> int:
        return len(self._open)

    def add(self, name: str, waiter: Waiter, deadline: float, *, idempotent: bool) -> Request[Waiter]:
        """Open a question."""
        request = Request(next(self._ids), name, waiter, deadline, idempotent)
        self._open[request.id] = request
        if deadline != float("inf"):
            self._expect(deadline, request.id)
        return request

    def _expect(self, deadline: float, identifier: int) -> None:
        dues = self._dues
        if len(dues) > 2 * len(self._open) + SPARE:
            dues = [each for each in tuple(dues) if each[1] in self._open]
            heapq.heapify(dues)
        heapq.heappush(dues, (deadline, identifier))
        self._dues = dues  # Now, with something in it: whoever answers may be looking at it in another thread.

    def pop(self, identifier: int) -> Request[Waiter] | None:
        """Close a question: it was answered, or nobody waits any more. None if it was closed before."""
        return self._open.pop(identifier, None)

    def get(self, identifier: int) -> Request[Waiter] | None:
        """Return an open question."""
        return self._open.get(identifier)

    def snapshot(self) -> tuple[Request[Waiter], ...]:
        """Return the open questions."""
        return tuple(self._open.values())

    def pop_lost(self, unsent: Container[int]) -> list[Request[Waiter]]:
        """Close and return those that were sent and may not be again: ``unsent`` are the ids of all other data."""
        gone = [each for each in self.snapshot() if not each.idempotent and each.queued and id(each.data) not in unsent]
        return [each for each in gone if self.pop(each.id) is not None]

    def resendable(self, kept: Container[int]) -> list[Request[Waiter]]:
        """Return those that may be sent again, and have to be: ``kept`` are the ids of all data that is sent anyhow."""
        return [each for each in self.snapshot() if each.idempotent and each.queued and id(each.data) not in kept]

    def pop_expired(self, now: float) -> list[Request[Waiter]]:
        """Close and return those whose deadline has passed."""
        late = []
        while self._dues and self._dues[0][0] <= now:
            request = self.pop(heapq.heappop(self._dues)[1])
            if request is not None:
                late.append(request)
        return late

    def pop_all(self) -> list[Request[Waiter]]:
        """Close and return all."""
        rest, self._open = list(self._open.values()), {}
        return rest

    @property
    def next_deadline(self) -> float:
        """When the next deadline passes; infinity if none does."""
        while self._dues and self._dues[0][1] not in self._open:
            heapq.heappop(self._dues)
        return self._dues[0][0] if self._dues else float("inf")
