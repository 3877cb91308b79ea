"""Lanes: the tasks that could start, side by side: those in one lane are held back together, or not at all."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from doorman.task import Task

__all__ = ["Entry", "Lane", "Lanes"]

TIDY: Final = 64
"""Entries of tasks that wait no more, beyond which a lane is tidied once they are the greater part of it."""
_Key: TypeAlias = tuple[int, int]


@dataclass(eq=False, slots=True)
class Entry:
    """One task that waits."""

    task: Task
    call: bytes
    """The pickled callable with its arguments."""
    turn: int
    """Its place among those of equal priority."""
    lane: Lane | None = None
    """Where it could start from; None while it waits for a moment or for other tasks."""
    key: _Key = field(init=False)
    """By which it is ordered: higher priority first, then by turn."""

    def __post_init__(self) -> None:
        self.key = -self.task.priority, self.turn


class Lane:
    """The waiting tasks of one handler; or one task that is asked whether it can run; or those that obey no rule."""

    def __init__(self, name: Hashable, *, free: bool) -> None:
        self.name = name
        self.free = free
        """Whether it obeys no rule."""
        self.why: str | None = None
        """What held it back when it was last looked at."""
        self.queued: _Key | None = None
        """The key of its entry among the lanes; any other there is out of date."""
        self._entries: list[tuple[_Key, int, Entry]] = []
        self._gone = 0

    def head(self) -> Entry | None:
        """Return the entry whose turn it is; None in an empty lane."""
        while self._entries and self._entries[0][2].lane is not self:
            heapq.heappop(self._entries)
            self._gone -= 1
        return self._entries[0][2] if self._entries else None

    def add(self, entry: Entry) -> None:
        """Put a task in its place."""
        entry.lane = self
        heapq.heappush(self._entries, (entry.key, id(entry), entry))

    def drop(self, entry: Entry) -> None:
        """Take a task out, wherever it stands."""
        entry.lane = None
        self._gone += 1
        if self._gone > TIDY and self._gone > len(self._entries) // 2:
            self._entries = [item for item in self._entries if item[2].lane is self]
            heapq.heapify(self._entries)
            self._gone = 0


class Lanes:
    """All lanes of one manager, ordered by the heads of their queues."""

    def __init__(self) -> None:
        self._lanes: dict[Hashable, Lane] = {}
        # Those that obey rules, and those that do not: a rule that holds back all is asked once for the first.
        self._order: dict[bool, list[tuple[_Key, int, Lane]]] = {False: [], True: []}
        self._serial = 0
        self.asked = 0
        """How many tasks have to be asked, again and again, whether they can run."""

    def add(self, entry: Entry) -> None:
        """Let a task stand in the lane that it belongs to."""
        task = entry.task
        self.asked += task.can_run is not None
        name = task if task.can_run is not None else None if task.ignores_rules else task.handler
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = Lane(name, free=task.ignores_rules)
        lane.add(entry)
        self.queue(lane)

    def drop(self, entry: Entry) -> None:
        """Take a task out of its lane, and the lane away if it was the last."""
        lane = entry.lane
        if lane is None:
            return
        self.asked -= entry.task.can_run is not None
        lane.drop(entry)
        if lane.head() is None:
            self._lanes.pop(lane.name, None)

    def queue(self, lane: Lane) -> None:
        """Have a lane looked at when its head's turn comes."""
        head = lane.head()
        if head is not None and (lane.queued is None or head.key < lane.queued):
            lane.queued = head.key
            self._serial += 1
            heapq.heappush(self._order[lane.free], (head.key, self._serial, lane))

    def next(self, *, free_only: bool) -> Lane | None:
        """Take the lane whose head's turn it is, of all or only of those that obey no rule; None if there is none.

        The one who takes it has to `queue` it again.
        """
        orders = [self._order[True]] if free_only else list(self._order.values())
        tidy = [order for order in orders if self._tidied(order)]
        if not tidy:
            return None
        lane = heapq.heappop(min(tidy, key=lambda order: order[0][:2]))[2]
        lane.queued = None
        return lane

    def _tidied(self, order: list[tuple[_Key, int, Lane]]) -> bool:
        """Remove from the front what is out of date; tell whether anything is left."""
        while order:
            key, _, lane = order[0]
            head = lane.head()
            if lane.queued == key and head is not None and head.key == key:
                return True
            heapq.heappop(order)
            if lane.queued == key:
                lane.queued = None
                self.queue(lane)
        return False
