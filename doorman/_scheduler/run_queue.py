"""Admission: the tasks that wait, what they wait for, and which of them may start now."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from doorman._scheduler.attempt import Attempt
from doorman._scheduler.occupancy import Occupancy
from doorman.errors import DependencyFailed
from doorman.load import SAMPLE_INTERVAL_S
from doorman.rules import Rule, Rules
from doorman.states import State
from doorman.task import Task
from remit._protocol.deadlines import DeadlineHeap

__all__ = ["Dependencies", "QueuedTask", "RunQueue", "_Group", "_Groups"]


GROUP_COMPACT_ABOVE: Final = 64
"""Entries of tasks that wait no more, beyond which a lane is tidied once they are the greater part of it."""
_Key: TypeAlias = tuple[int, int]


@dataclass(eq=False, slots=True)
class QueuedTask:
    """One task that waits."""

    task: Task
    call: bytes
    """The pickled callable with its arguments."""
    turn: int
    """Its place among those of equal priority."""
    lane: _Group | None = None
    """Where it could start from; None while it waits for a moment or for other tasks."""
    key: _Key = field(init=False)
    """By which it is ordered: higher priority first, then by turn."""

    def __post_init__(self) -> None:
        self.key = -self.task.priority, self.turn


class _Group:
    """The waiting tasks of one handler; or one task that is asked whether it can run; or those that obey no rule."""

    def __init__(self, name: Hashable, *, free: bool) -> None:
        self.name = name
        self.free = free
        """Whether it obeys no rule."""
        self.why: str | None = None
        """What held it back when it was last looked at."""
        self.queued: _Key | None = None
        """The key of its entry among the lanes; any other there is out of date."""
        self._entries: list[tuple[_Key, int, QueuedTask]] = []
        self._gone = 0

    def head(self) -> QueuedTask | None:
        """Return the entry whose turn it is; None in an empty lane."""
        while self._entries and self._entries[0][2].lane is not self:
            heapq.heappop(self._entries)
            self._gone -= 1
        return self._entries[0][2] if self._entries else None

    def add(self, entry: QueuedTask) -> None:
        """Put a task in its place."""
        entry.lane = self
        heapq.heappush(self._entries, (entry.key, id(entry), entry))

    def drop(self, entry: QueuedTask) -> None:
        """Take a task out, wherever it stands."""
        entry.lane = None
        self._gone += 1
        if self._gone > GROUP_COMPACT_ABOVE and self._gone > len(self._entries) // 2:
            self._entries = [item for item in self._entries if item[2].lane is self]
            heapq.heapify(self._entries)
            self._gone = 0


class _Groups:
    """All lanes of one manager, ordered by the heads of their queues."""

    def __init__(self) -> None:
        self._lanes: dict[Hashable, _Group] = {}
        # Those that obey rules, and those that do not: a rule that holds back all is asked once for the first.
        self._order: dict[bool, list[tuple[_Key, int, _Group]]] = {False: [], True: []}
        self._serial = 0
        self.asked = 0
        """How many tasks have to be asked, again and again, whether they can run."""

    def add(self, entry: QueuedTask) -> None:
        """Let a task stand in the lane that it belongs to."""
        task = entry.task
        self.asked += task.can_run is not None
        name = task if task.can_run is not None else None if task.ignores_rules else task.handler
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = _Group(name, free=task.ignores_rules)
        lane.add(entry)
        self.queue(lane)

    def drop(self, entry: QueuedTask) -> None:
        """Take a task out of its lane, and the lane away if it was the last."""
        lane = entry.lane
        if lane is None:
            return
        self.asked -= entry.task.can_run is not None
        lane.drop(entry)
        if lane.head() is None:
            self._lanes.pop(lane.name, None)

    def queue(self, lane: _Group) -> None:
        """Have a lane looked at when its head's turn comes."""
        head = lane.head()
        if head is not None and (lane.queued is None or head.key < lane.queued):
            lane.queued = head.key
            self._serial += 1
            heapq.heappush(self._order[lane.free], (head.key, self._serial, lane))

    def next(self, *, free_only: bool) -> _Group | None:
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

    def _tidied(self, order: list[tuple[_Key, int, _Group]]) -> bool:
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


NAMED: Final = 3
"""Tasks that `Dependencies.why` names; the others it counts."""


class Dependencies:
    """The waiting tasks of one manager that have to wait for others."""

    def __init__(self) -> None:
        self._open: dict[Task, dict[Task, None]] = {}
        self._followers: dict[Task, dict[Task, None]] = {}
        self._ended: deque[Task] = deque()

    @property
    def unsettled(self) -> bool:
        """Whether a task has ended that others waited for, and `settle` has not been called since."""
        return bool(self._ended)

    def hold(self, task: Task) -> bool:
        """Let a task wait for those that it comes after; False if it need not."""
        wanted = {first: None for first in task.after if first.state is not State.DONE}
        if not wanted:
            return False
        self._open[task] = wanted
        for first in wanted:
            if first not in self._followers:
                self._followers[first] = {}
                first._on_done(self._ended.append)
            self._followers[first][task] = None
        return True

    def forget(self, task: Task) -> None:
        """Let a task wait for nobody any more."""
        for first in self._open.pop(task, {}):
            followers = self._followers.get(first, {})
            followers.pop(task, None)

    def settle(self) -> Iterator[tuple[Task, DependencyFailed | None]]:
        """Yield the tasks that wait for nobody any more, and those that wait in vain with the error they end with."""
        while self._ended:
            first = self._ended.popleft()
            for task in self._followers.pop(first, {}):
                if first.state is not State.DONE:
                    self.forget(task)
                    yield task, _failure(task, first)
                elif task in self._open:
                    del self._open[task][first]
                    if not self._open[task]:
                        del self._open[task]
                        yield task, None

    def why(self, task: Task) -> str | None:
        """Name what a task waits for; None if it waits for nobody."""
        wanted = list(self._open.get(task, ()))
        if not wanted:
            return None
        names = ", ".join(f"{first.name!r} (task {first.id}, {first.state})" for first in wanted[:NAMED])
        more = f" and {len(wanted) - NAMED} more" if len(wanted) > NAMED else ""
        return f"it comes after {names}{more}"


def _failure(task: Task, first: Task) -> DependencyFailed:
    error = DependencyFailed(f"task {task.name!r} comes after {first!r}, which did not end well")
    error.__cause__ = first.exception()
    return error


AGAIN: Final = 0.1
"""Seconds after which a process is asked for again where none could be had; earlier if another one ends."""
TIDY: Final = 1024
"""Tasks that were dropped while they rested, beyond which they are forgotten before their rest is over."""
_Start: TypeAlias = Callable[[QueuedTask], bool]
_Fail: TypeAlias = Callable[[Task, BaseException], object]


class RunQueue:
    """The queue in front of a manager: by priority, then in the order in which tasks were added.

    Rules and questions hold some back; those behind overtake them. Nothing is looked at before something has happened
    that may let it start, and then only the first of those that are held back together.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = Rules(rules)
        self._entries: dict[Task, QueuedTask] = {}
        self._lanes = _Groups()
        self._dependencies = Dependencies()
        self._resting: DeadlineHeap[QueuedTask] = DeadlineHeap()
        self._due: dict[QueuedTask, float] = {}
        self._occupancy = Occupancy()
        self._turns = 0
        self._seen: tuple[Rule, ...] = ()
        self._general = Rules()
        self._by_load = False
        self._stirred = False
        """Whether anything has happened that may let a task start."""
        self._held: str | None = None
        self._not_before = 0.0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that wait, in the order in which they were added."""
        return tuple(entry.task for entry in sorted(self._entries.values(), key=lambda entry: entry.turn))

    # -- coming and going --------------------------------------------------------------------------------------

    def add(self, task: Task, call: bytes) -> None:
        """Let a task wait, with its pickled call."""
        if not self._entries:
            self._occupancy.resume()
        entry = self._entries[task] = QueuedTask(task, call, self._turn())
        if not self._dependencies.hold(task):
            self._ready(entry)

    def rest(self, task: Task, call: bytes, seconds: float) -> None:
        """Let a task wait that is to be tried again, but not before so many seconds."""
        entry = self._entries[task] = QueuedTask(task, call, self._turn())
        if seconds <= 0:
            self._ready(entry)
            return
        self._due[entry] = time.monotonic() + seconds
        self._resting.expect(entry, seconds)

    def put_back(self, attempt: Attempt, why: str) -> None:
        """Let a task wait where it stood: it was admitted, and no process could be had."""
        entry = self._entries[attempt.task] = QueuedTask(attempt.task, attempt.call, attempt.turn)
        self._ready(entry)
        self.refused(why)

    def drop(self, task: Task) -> bool:
        """Let it wait no longer; False if it did not wait."""
        entry = self._entries.pop(task, None)
        if entry is None:
            return False
        self._lanes.drop(entry)
        self._dependencies.forget(task)
        if self._due.pop(entry, None) is not None and len(self._resting) > TIDY + 2 * len(self._due):
            self._resting.tidy(self._due.__contains__)
        return True

    def started(self, attempt: Attempt) -> None:
        """Count a process that was just asked for."""
        self._occupancy.started(attempt)

    def ended(self, attempt: Attempt) -> None:
        """Count a process no more: there is room again."""
        self._occupancy.ended(attempt)
        self._stirred = True
        self._not_before = 0.0

    def settle(self) -> Iterator[tuple[Task, DependencyFailed]]:
        """Let those go on that waited for tasks which are done; yield those that wait in vain, and drop them."""
        for task, error in self._dependencies.settle():
            if error is None:
                self._ready(self._entries[task])
            elif self.drop(task):
                yield task, error

    # -- who may start -----------------------------------------------------------------------------------------

    def admit(self, running: Iterable[Attempt], start: _Start, fail: _Fail) -> None:
        """Have those started that may; ``start`` drops the task and returns False if that is enough for now.

        A task whose own question raises is given to ``fail``, which drops it as well. What is added meanwhile has to
        wait for the next time.
        """
        self._wake()
        if not self._worth_a_look(running):
            return
        self._stirred, self._held = False, None
        taken: dict[_Group, None] = {}
        try:
            if not self._look(taken, start, fail):
                self._stirred = True
                self._held = self._held or "enough processes are just being started"
        except BaseException:
            self._stirred = True
            raise
        finally:
            for lane in taken:
                self._lanes.queue(lane)

    def _look(self, taken: dict[_Group, None], start: _Start, fail: _Fail) -> bool:
        """Look at the lanes in turn; False if ``start`` had enough before the last."""
        latest, held = self._turn(), False
        while (lane := self._next()) is not None:
            taken[lane] = None
            entry = lane.head()
            if entry is None or entry.turn > latest:
                self._stirred |= entry is not None
                continue
            try:
                lane.why = self._holds_back(entry, lane)
            except Exception as error:  # noqa: BLE001 - a question of one task's must not stop the others
                fail(entry.task, error)
                self._lanes.queue(lane)
                continue
            if lane.why is not None:
                held = True
            elif entry.lane is lane:  # Its own question may have cancelled it.
                # What starts changes the load: it may end what held others back.
                self._stirred |= held
                if not start(entry):
                    return False
                self._lanes.queue(lane)
        return True

    def refused(self, why: str) -> None:
        """Ask for no process for a little while: none can be had just now."""
        self._held, self._not_before = why, time.monotonic() + AGAIN

    def why(self, task: Task) -> str | None:
        """Tell what holds a waiting task back; None if nothing does, or if it does not wait."""
        entry = self._entries.get(task)
        if entry is None:
            return None
        if entry in self._due:
            left = max(0.0, self._due[entry] - time.monotonic())
            return f"attempt {task.attempt} has ended; it is tried again in {left:.1f} s"
        if entry.lane is None:
            return self._dependencies.why(task)
        if self._not_before:
            return self._held
        return entry.lane.why or (None if entry.lane.free else self._held)

    def patience(self, most: float, *, full: bool) -> float:
        """Return the seconds, ``most`` at the most, until a task may start though nothing else happens.

        ``full`` says that no process would be asked for now.
        """
        if self._dependencies.unsettled:
            return 0.0
        if full or not self._entries:
            return most
        most = self._resting.patience(most)
        if self._not_before:
            return max(0.0, min(most, self._not_before - time.monotonic()))
        if self._stirred:
            return 0.0
        # Nobody tells when a question has another answer, or what a process uses.
        return min(most, SAMPLE_INTERVAL_S) if self._lanes.asked or self._by_load else most

    def _turn(self) -> int:
        self._turns += 1
        return self._turns

    def _ready(self, entry: QueuedTask) -> None:
        self._lanes.add(entry)
        self._stirred = True

    def _wake(self) -> None:
        """Let those go on whose pause is over."""
        for entry in self._resting.due():
            if self._due.pop(entry, None) is not None:
                self._ready(entry)

    def _worth_a_look(self, running: Iterable[Attempt]) -> bool:
        if self._not_before:
            if time.monotonic() < self._not_before:
                return False
            self._not_before, self._stirred = 0.0, True
        if (rules := tuple(self.rules)) != self._seen:
            self._seen, self._stirred, self._by_load = rules, True, self.rules.by_load
            self._general = Rules(rule for rule in rules if rule.handler is None and not _about_siblings(rule))
        if self._by_load and self._occupancy.measure(running):
            self._stirred = True
        return bool(self._stirred or self._lanes.asked)

    def _next(self) -> _Group | None:
        """Take the next lane; once a rule holds back all who obey rules, only those who do not."""
        if self._held is None and len(self._general):
            self._held = self._general.holds_back("", self._occupancy.load)
        return self._lanes.next(free_only=self._held is not None)

    def _holds_back(self, entry: QueuedTask, lane: _Group) -> str | None:
        task = entry.task
        if not lane.free and (why := self.rules.holds_back(task.handler, self._occupancy.load)) is not None:
            return why
        if task.can_run is not None and not task.can_run():
            return "its can_run says no"
        return None


def _about_siblings(rule: Rule) -> bool:
    """Tell whether a rule may hold back one handler and not another."""
    return any(
        bound is not None
        for bound in (
            rule.minimum_sibling_processor_load,
            rule.maximum_sibling_processor_load,
            rule.minimum_sibling_memory_load,
            rule.maximum_sibling_memory_load,
        )
    )
