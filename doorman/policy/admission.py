"""Admission: the tasks that wait, what they wait for, and which of them may start now."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeAlias

from doorman.attempts.attempt import Attempt
from doorman.errors import DependencyFailed
from doorman.load import SAMPLE
from doorman.policy.dependencies import Dependencies
from doorman.policy.lanes import Entry, Lane, Lanes
from doorman.policy.occupancy import Occupancy
from doorman.policy.timetable import Timetable
from doorman.rules import Rule, Rules
from doorman.task import Task

__all__ = ["Admission"]

AGAIN: Final = 0.1
"""Seconds after which a process is asked for again where none could be had; earlier if another one ends."""
TIDY: Final = 1024
"""Tasks that were dropped while they rested, beyond which they are forgotten before their rest is over."""
_Start: TypeAlias = Callable[[Entry], bool]
_Fail: TypeAlias = Callable[[Task, BaseException], object]


class Admission:
    """The queue in front of a manager: by priority, then in the order in which tasks were added.

    Rules and questions hold some back; those behind overtake them. Nothing is looked at before something has happened
    that may let it start, and then only the first of those that are held back together.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = Rules(rules)
        self._entries: dict[Task, Entry] = {}
        self._lanes = Lanes()
        self._dependencies = Dependencies()
        self._resting: Timetable[Entry] = Timetable()
        self._due: dict[Entry, float] = {}
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
        entry = self._entries[task] = Entry(task, call, self._turn())
        if not self._dependencies.hold(task):
            self._ready(entry)

    def rest(self, task: Task, call: bytes, seconds: float) -> None:
        """Let a task wait that is to be tried again, but not before so many seconds."""
        entry = self._entries[task] = Entry(task, call, self._turn())
        if seconds <= 0:
            self._ready(entry)
            return
        self._due[entry] = time.monotonic() + seconds
        self._resting.expect(entry, seconds)

    def put_back(self, attempt: Attempt, why: str) -> None:
        """Let a task wait where it stood: it was admitted, and no process could be had."""
        entry = self._entries[attempt.task] = Entry(attempt.task, attempt.call, attempt.turn)
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
        taken: dict[Lane, None] = {}
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

    def _look(self, taken: dict[Lane, None], start: _Start, fail: _Fail) -> bool:
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
        return min(most, SAMPLE) if self._lanes.asked or self._by_load else most

    def _turn(self) -> int:
        self._turns += 1
        return self._turns

    def _ready(self, entry: Entry) -> None:
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

    def _next(self) -> Lane | None:
        """Take the next lane; once a rule holds back all who obey rules, only those who do not."""
        if self._held is None and len(self._general):
            self._held = self._general.holds_back("", self._occupancy.load)
        return self._lanes.next(free_only=self._held is not None)

    def _holds_back(self, entry: Entry, lane: Lane) -> str | None:
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
