"""Queue of waiting tasks, by priority, then in order. Rules, dependencies, delays and `can_run` hold tasks back."""

from __future__ import annotations

import heapq
import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Final, TypeAlias

from doorman._scheduler.occupancy import Occupancy
from doorman.errors import DependencyFailed
from doorman.load import SAMPLE_INTERVAL_S
from doorman.rules import Rule, Rules
from doorman.states import State
from remit._internal import DeadlineHeap

if TYPE_CHECKING:
    from doorman._scheduler.attempt import Attempt
    from doorman.task import Task

logger = logging.getLogger("doorman")

HOLD_REPORT_S: Final = 5.0
"""Seconds without a start of a process after which a warning states why tasks wait."""
HOLD_REPORT_INTERVAL_S: Final = 60.0
"""Seconds between two such warnings."""
HOLD_S: Final = 0.1
"""Seconds without a launch after a failed one, unless a process ends earlier."""
SPARE_ENTRIES: Final = 64
"""Rebuild the heap of a group when it has more removed tasks than this, and more than waiting ones."""
NAMED: Final = 3
"""Most dependencies that `RunQueue.why` names; it counts the others."""
_Key: TypeAlias = tuple[int, int]


@dataclass(eq=False, slots=True)
class QueuedTask:
    """A task that waits."""

    task: Task
    call: bytes  # The pickled callable with its arguments.
    turn: int  # Its place among tasks of equal priority.
    group: _QueueGroup | None = None  # None while it waits for the end of a delay or for other tasks.
    key: _Key = field(init=False)  # The order: higher priority first, then by turn.

    def __post_init__(self) -> None:
        self.key = -self.task.priority, self.turn


_Admitted: TypeAlias = tuple[QueuedTask, Exception | None]
"""A task that may start, or one whose `can_run` raised, with the exception."""


class RunQueue:
    """The waiting tasks of one manager.

    A tick examines tasks only after a change that may let one start, and then only the first task of each group. So
    the cost of a tick does not grow with the number of tasks.
    """

    def __init__(self, rules: Iterable[Rule], *, clock: Callable[[], float] = time.monotonic) -> None:
        self.rules = Rules(rules)
        self._clock = clock
        self._queued: dict[Task, QueuedTask] = {}
        self.added: dict[Task, bytes] = {}
        """Tasks with their calls, for `add` once the current change has ended: a nested call may put them here."""
        self._groups = _QueueGroups()
        self._dependencies = _Dependencies()
        self._due: dict[QueuedTask, float] = {}
        self._delays: DeadlineHeap[QueuedTask] = DeadlineHeap(self._due.__contains__)
        self._occupancy = Occupancy(clock=clock)
        self._turns = 0
        self._seen: tuple[Rule, ...] = ()  # The rules at the last examination.
        self._general = Rules()  # The rules that hold back all handlers or none.
        self._by_load = False  # Whether any rule has a band.
        self._changed = False  # Whether a change may let a task start.
        self._held: str | None = None  # Why all tasks wait; if a rule is the reason, exempt tasks may still start.
        self._hold_since: float | None = None  # Monotonic time of the first `hold` after the last start of a process.
        self._report_at = 0.0  # Monotonic time before which the reason of a hold is not logged again.
        self._not_before = 0.0  # Monotonic time at which `hold` ends; 0.0 without a hold.

    def __len__(self) -> int:
        return len(self._queued)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that wait, in the order in which they were added."""
        queued = sorted(self._queued.values(), key=lambda queued: queued.turn)
        return (*(each.task for each in queued), *(task for task in self.added if task not in self._queued))

    def has(self, task: Task) -> bool:
        """Return whether a task waits."""
        return task in self._queued or task in self.added

    def rebuild(self, running: Iterable[Attempt]) -> None:
        """Derive groups, dependencies, delays and slots again, from the waiting tasks and the running attempts."""
        self._due = {queued: at for queued, at in self._due.items() if self._queued.get(queued.task) is queued}
        self._delays = DeadlineHeap(self._due.__contains__)
        self._groups, self._dependencies = _QueueGroups(), _Dependencies()
        for queued in tuple(self._queued.values()):
            queued.group = None
            if queued in self._due:
                self._delays.schedule(self._due[queued], queued)
            elif not self._dependencies.hold(queued.task):
                self._groups.add(queued)
        self._occupancy.rebuild(running)
        self._changed = True

    def add(self, task: Task, call: bytes) -> None:
        """Add a task with its pickled call."""
        if not self._queued:
            self._occupancy.resume()
        self.remove(task)
        queued = self._queued[task] = QueuedTask(task, call, self.next_turn())
        if not self._dependencies.hold(task):
            self._ready(queued)
        self.added.pop(task, None)

    def delay(self, task: Task, call: bytes, seconds: float) -> None:
        """Add a task for its next attempt, after so many seconds."""
        self.remove(task)
        queued = self._queued[task] = QueuedTask(task, call, self.next_turn())
        if seconds <= 0:
            self._ready(queued)
            return
        self._due[queued] = self._clock() + seconds
        self._delays.schedule(self._due[queued], queued)

    def requeue(self, task: Task, call: bytes, turn: int) -> None:
        """Return an admitted task to its place, since no process could be started."""
        self.remove(task)
        queued = self._queued[task] = QueuedTask(task, call, turn)
        self._ready(queued)

    def remove(self, task: Task) -> bool:
        """Remove a task; False if it does not wait."""
        queued = self._queued.pop(task, None)
        if queued is None:
            return False
        self._groups.remove(queued)
        self._dependencies.remove(task)
        if self._due.pop(queued, None) is not None:
            self._delays.compact(len(self._due))
        return True

    def take_slot(self, attempt: Attempt) -> None:
        """Count a process that is about to be launched."""
        self._occupancy.started(attempt)

    def free_slot(self, attempt: Attempt) -> None:
        """Subtract a process that has ended: another may start."""
        self._occupancy.ended(attempt)
        self._changed = True
        self._not_before = 0.0

    def release_dependents(self) -> Iterator[tuple[Task, DependencyFailed]]:
        """Make tasks ready whose dependencies are done; yield those with a failed one, which the caller removes."""
        for task, error in self._dependencies.settle():
            if error is None:
                self._ready(self._queued[task])
            elif task in self._queued:
                yield task, error

    def next_turn(self) -> int:
        """Return the place behind all others."""
        self._turns += 1
        return self._turns

    def admit(self, running: Iterable[Attempt], limit: int) -> Generator[_Admitted, None, None]:
        """Yield up to ``limit`` tasks that may start, and those whose `can_run` raised, with the exception.

        The caller removes each task before it requests the next. A task that is added in between waits for the next
        call.
        """
        if limit <= 0 or not self._queued:
            return
        for queued in self._delays.pop_due(self._clock()):
            del self._due[queued]
            self._ready(queued)
        if not self._worth_examining(running):
            return
        self._changed, self._held = False, None
        examined: dict[_QueueGroup, None] = {}
        complete = False
        try:
            complete = yield from self._examine(examined, limit)
            if not complete:
                self._held = self._held or "enough processes are just being started"
        finally:  # Also if the caller was interrupted, as by Ctrl-C.
            self._changed |= not complete
            for group in examined:
                self._groups.queue(group)

    def hold(self, why: str) -> None:
        """Admit no task for HOLD_S seconds, since no process can be started now."""
        now = self._clock()
        self._held, self._not_before = why, now + HOLD_S
        if self._hold_since is None:
            self._hold_since = now
        elif now >= max(self._hold_since + HOLD_REPORT_S, self._report_at):
            self._report_at = now + HOLD_REPORT_INTERVAL_S
            logger.warning("%d tasks have waited for %.0f s: %s", len(self._queued), now - self._hold_since, why)

    def end_hold(self) -> None:
        """Count the time of the next `hold` from now on, since a process has started."""
        self._hold_since = None

    def why(self, task: Task) -> str | None:
        """Return the reason that holds a waiting task back; None if there is none, or if the task does not wait."""
        queued = self._queued.get(task)
        if queued is None:
            return None
        if queued in self._due:
            left = max(0.0, self._due[queued] - self._clock())
            return f"attempt {task.attempt} has ended; it is tried again in {left:.1f} s"
        if queued.group is None:
            return self._dependencies.why(task)
        if self._not_before:
            return self._held
        return queued.group.why or (None if queued.group.free else self._held)

    def next_timeout(self, most: float, *, full: bool) -> float:
        """Return the seconds until a task may start without any other change, ``most`` at the most.

        With ``full`` no process may be launched now.
        """
        if self._dependencies.ended:
            return 0.0
        if full or not self._queued:
            return most
        most = self._delays.next_timeout(self._clock(), most)
        if self._not_before:
            return max(0.0, min(most, self._not_before - self._clock()))
        if self._changed:
            return 0.0
        # Nothing reports that a `can_run` has another answer, or that a process uses less.
        return min(most, SAMPLE_INTERVAL_S) if self._groups.asked or self._by_load else most

    def _examine(self, examined: dict[_QueueGroup, None], limit: int) -> Generator[_Admitted, None, bool]:
        """Yield the tasks of `admit`; return whether all groups were examined."""
        latest, held = self.next_turn(), False
        while (group := self._next_group()) is not None:
            examined[group] = None
            queued = group.head()
            if queued is None or queued.turn > latest:
                self._changed |= queued is not None
                continue
            try:
                group.why = self._holds_back(queued, group)
            except Exception as error:  # the `can_run` of one task must not stop the others
                if queued.task.can_run is None:
                    raise  # That of a signal handler.
                yield queued, error
                self._groups.queue(group)
                continue
            if group.why is not None:
                held = True
            elif queued.group is group:  # Its `can_run` may have cancelled it.
                # A start may move the load out of the band of a rule that held back an earlier group.
                self._changed |= held
                yield queued, None
                limit -= 1
                if not limit or self._not_before:
                    return False
                self._groups.queue(group)
        return True

    def _ready(self, queued: QueuedTask) -> None:
        self._groups.add(queued)
        self._changed = True

    def _worth_examining(self, running: Iterable[Attempt]) -> bool:
        if self._not_before:
            if self._clock() < self._not_before:
                return False
            self._not_before, self._changed = 0.0, True
        if (rules := tuple(self.rules)) != self._seen:
            self._seen, self._changed, self._by_load = rules, True, self.rules.by_load
            self._general = Rules(rule for rule in rules if rule.handler is None and not _about_siblings(rule))
        if self._by_load and self._occupancy.measure(running):
            self._changed = True
        return bool(self._changed or self._groups.asked)

    def _next_group(self) -> _QueueGroup | None:
        """Pop the next group. While a rule for all handlers holds back, pop only groups that are exempt from rules."""
        if self._held is None and len(self._general):
            self._held = self._general.holds_back("", self._occupancy.load)
        return self._groups.pop(free_only=self._held is not None)

    def _holds_back(self, queued: QueuedTask, group: _QueueGroup) -> str | None:
        task = queued.task
        if not group.free and (why := self.rules.holds_back(task.handler, self._occupancy.load)) is not None:
            return why
        if task.can_run is not None and not task.can_run():
            return "its can_run says no"
        return None


def _about_siblings(rule: Rule) -> bool:
    """Return whether a rule may hold back one handler and not another."""
    return any(getattr(rule, bound.name) is not None for bound in fields(rule) if "sibling" in bound.name)


class _QueueGroup:
    """Tasks of which only the first is examined: all of one handler, all exempt from rules, or one with a `can_run`."""

    def __init__(self, name: Hashable, *, free: bool) -> None:
        self.name = name
        self.free = free  # Whether its tasks are exempt from rules.
        self.why: str | None = None  # The reason that held it back when it was last examined.
        self.listed: _Key | None = None  # The key of its entry in `_QueueGroups`; any other entry there is outdated.
        self._heap: list[tuple[_Key, int, QueuedTask]] = []
        self._removed = 0

    def head(self) -> QueuedTask | None:
        """Return the first task; None in an empty group."""
        while self._heap and self._heap[0][2].group is not self:
            heapq.heappop(self._heap)
            self._removed -= 1
        return self._heap[0][2] if self._heap else None

    def add(self, queued: QueuedTask) -> None:
        queued.group = self
        heapq.heappush(self._heap, (queued.key, id(queued), queued))

    def remove(self, queued: QueuedTask) -> None:
        """Remove a task; its entry stays in the heap until it is the first."""
        queued.group = None
        self._removed += 1
        if self._removed > SPARE_ENTRIES and self._removed > len(self._heap) // 2:
            self._heap = [item for item in self._heap if item[2].group is self]
            heapq.heapify(self._heap)
            self._removed = 0


class _QueueGroups:
    """All groups of one manager, ordered by their heads."""

    def __init__(self) -> None:
        self._groups: dict[Hashable, _QueueGroup] = {}
        # One heap per value of `free`: `pop` can skip all groups that obey rules if a rule holds back all handlers.
        self._order: dict[bool, list[tuple[_Key, int, _QueueGroup]]] = {False: [], True: []}
        self._serial = 0
        self.asked = 0  # Number of tasks with a `can_run`, which each tick calls again.

    def add(self, queued: QueuedTask) -> None:
        """Add a task to its group."""
        task = queued.task
        self.asked += task.can_run is not None
        name = task if task.can_run is not None else None if task.ignores_rules else task.handler
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = _QueueGroup(name, free=task.ignores_rules)
        group.add(queued)
        self.queue(group)

    def remove(self, queued: QueuedTask) -> None:
        """Remove a task from its group, and the group if it was the last."""
        group = queued.group
        if group is None:
            return
        self.asked -= queued.task.can_run is not None
        group.remove(queued)
        if group.head() is None:
            self._groups.pop(group.name, None)

    def queue(self, group: _QueueGroup) -> None:
        """Queue a group at the place of its first task."""
        head = group.head()
        if head is not None and (group.listed is None or head.key < group.listed):
            group.listed = head.key
            self._serial += 1
            heapq.heappush(self._order[group.free], (head.key, self._serial, group))

    def pop(self, *, free_only: bool) -> _QueueGroup | None:
        """Pop the group with the first task, of all or of the exempt ones; the caller has to `queue` it again."""
        orders = [self._order[True]] if free_only else list(self._order.values())
        current = [order for order in orders if self._skip_outdated(order)]
        if not current:
            return None
        group = heapq.heappop(min(current, key=lambda order: order[0][:2]))[2]
        group.listed = None
        return group

    def _skip_outdated(self, order: list[tuple[_Key, int, _QueueGroup]]) -> bool:
        """Remove outdated entries from the front; return whether any is left."""
        while order:
            key, _, group = order[0]
            head = group.head()
            if group.listed == key and head is not None and head.key == key:
                return True
            heapq.heappop(order)
            if group.listed == key:
                group.listed = None
                self.queue(group)
        return False


class _Dependencies:
    """The waiting tasks of one manager that depend on others. Each end of a task is examined once."""

    def __init__(self) -> None:
        self._open: dict[Task, dict[Task, None]] = {}
        self._followers: dict[Task, dict[Task, None]] = {}
        self.ended: deque[Task] = deque()  # Tasks with followers that have ended since the last `settle`.

    def hold(self, task: Task) -> bool:
        """Hold a task back until its dependencies are done; False if they are done."""
        wanted = {first: None for first in task.after if first.state is not State.DONE}
        if not wanted:
            return False
        self._open[task] = wanted
        for first in wanted:
            if first not in self._followers:
                self._followers[first] = {}
                first._on_done(self.ended.append)
            self._followers[first][task] = None
        return True

    def remove(self, task: Task) -> None:
        for first in self._open.pop(task, {}):
            self._followers.get(first, {}).pop(task, None)

    def settle(self) -> Iterator[tuple[Task, DependencyFailed | None]]:
        """Yield the tasks whose dependencies are done, and those with a failed one, with their error."""
        while self.ended:
            first = self.ended.popleft()
            for task in self._followers.pop(first, {}):
                if first.state is not State.DONE:
                    self.remove(task)
                    error = DependencyFailed(f"task {task.name!r} comes after {first!r}, which did not end well")
                    error.__cause__ = first.exception()
                    yield task, error
                elif task in self._open:
                    del self._open[task][first]
                    if not self._open[task]:
                        del self._open[task]
                        yield task, None

    def why(self, task: Task) -> str | None:
        """Return the names of the tasks that a task waits for; None if there are none."""
        wanted = list(self._open.get(task, ()))
        if not wanted:
            return None
        names = ", ".join(f"{first.name!r} (task {first.id}, {first.state})" for first in wanted[:NAMED])
        more = f" and {len(wanted) - NAMED} more" if len(wanted) > NAMED else ""
        return f"it comes after {names}{more}"
