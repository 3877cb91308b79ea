"""Job: one request on its way through a broker, and the workers who take such."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

__all__ = ["Job", "Worker"]


@dataclass(slots=True, eq=False)
class Job:
    """One request on its way through the broker. The body stays sealed."""

    client: Hashable
    question: int
    """The client's own number of it."""
    name: str
    body: bytes
    codec: str
    deadline: float
    attempt: int = 0
    """How many workers have begun it."""
    token: int = 0
    """Names this assignment; 0 while nobody has it in hand."""
    worker: Worker | None = None
    begun: bool = False
    unwanted: bool = False
    """Nobody waits for it any more: whoever has begun it finishes it, and nobody else does it."""
    over: bool = False


@dataclass(slots=True, eq=False)
class Worker:
    """Somebody who takes jobs: which, and how many at once."""

    key: Hashable
    takes: Callable[[str], bool]
    capacity: int
    term: int = 0
    """Which of its announcements holds: what it is given carries this number."""
    leaving: bool = False
    hand: dict[int, Job] = field(default_factory=dict)

    @property
    def idle(self) -> bool:
        """Whether it takes one more."""
        return not self.leaving and len(self.hand) < self.capacity
