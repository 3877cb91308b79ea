"""Groups: tasks that run group after group; the members of one run together, as the rules allow."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from doorman.owner import Owner
from doorman.rules import Rule
from doorman.states import State
from doorman.task import Task

if TYPE_CHECKING:
    from remit import Server

__all__ = ["GroupManager", "Manager"]


class Manager(Protocol):
    """What a group manager needs of the manager that it leads."""

    server: Server

    def add_task(self, task: Task) -> Task:
        """Want a task."""
        ...

    def add_rule(self, rule: Rule) -> None:
        """Obey one more rule."""
        ...

    def remove_rule(self, rule: Rule) -> bool:
        """Obey it no more."""
        ...

    def cancel(self, task: Task) -> bool:
        """Drop or stop a task."""
        ...

    def tick(self) -> bool:
        """Do what can be done now."""
        ...

    def wait(self, timeout: float) -> None:
        """Wait until there is something to do."""
        ...

    def close(self) -> None:
        """Stop everything and end."""
        ...


class GroupManager(Owner):
    """Leads another manager: a group starts when every task of the one before it has ended, however it ended.

    Several may lead one manager: each keeps its own order, and the manager's rules hold for all of them together.
    Leaving its block closes the manager that it leads.
    """

    def __init__(self, manager: Manager) -> None:
        super().__init__()
        self.manager = manager
        self.server = manager.server
        """The server that the tasks emit to."""
        self._groups: deque[dict[Task, bytes]] = deque()
        self._current: tuple[Task, ...] = ()
        self._closed = False

    @property
    def groups(self) -> tuple[tuple[Task, ...], ...]:
        """The groups that have not begun, in order."""
        return tuple(tuple(group) for group in self._groups)

    def add_group(self, tasks: Iterable[Task]) -> tuple[Task, ...]:
        """Want some tasks, together, after all that was added before; all of them or, if it raises, none.

        Raises TaskNotPicklable, TaskAlreadyAdded.
        """
        if self._closed:
            raise ValueError("this manager is closed")
        group: dict[Task, bytes] = {}
        try:
            for task in tasks:
                group[task] = task.adopt(self)
        except BaseException:
            for task in group:
                task.release()
            raise
        self._groups.append(group)
        return tuple(group)

    def add_task(self, task: Task) -> Task:
        """Want one task, after all that was added before: a group of its own."""
        self.add_group([task])
        return task

    def add_rule(self, rule: Rule) -> None:
        """Obey one more rule from now on."""
        self.manager.add_rule(rule)

    def remove_rule(self, rule: Rule) -> bool:
        """Obey it no more; False if it was not there."""
        return self.manager.remove_rule(rule)

    def cancel(self, task: Task) -> bool:
        """Drop a task whose group has not begun, or cancel one that waits or runs; False if it has ended."""
        for group in self._groups:
            if group.pop(task, None) is not None:
                task.end(State.CANCELLED)
                return True
        return self.manager.cancel(task)

    def tick(self) -> bool:
        """Do what can be done now, without waiting; True while anything waits or runs, in any group."""
        self._do_soon()
        busy = self.manager.tick()
        if self._advance():
            busy = self.manager.tick()
        return busy or bool(self._groups)

    def wait(self, timeout: float) -> None:
        """Return after ``timeout`` seconds, or earlier if `tick` has something to do."""
        self.manager.wait(0.0 if self._soon or (self._groups and self._ended()) else timeout)

    def close(self) -> None:
        """Cancel the groups that have not begun, stop what runs, and end. May be called twice."""
        self._closed = True
        for group in self.groups:
            for task in group:
                self.cancel(task)
        self._groups.clear()
        self.manager.close()

    def _ended(self) -> bool:
        return all(task.done() for task in self._current)

    def _advance(self) -> bool:
        """Begin the next group, whole, if the present one has ended; False if there is nothing to begin."""
        if not self._groups or not self._ended():
            return False
        group = self._groups.popleft()
        self._current = tuple(group)
        for task, call in group.items():
            task.release(call)
        if isinstance(self.manager, GroupManager):
            self.manager.add_group(group)  # Added one by one they would be groups of their own.
        else:
            for task in group:
                self.manager.add_task(task)
        return True
