"""Groups: tasks that run group after group; the members of one run together, as the rules allow."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from doorman.rules import Rule
from doorman.task import Task

if TYPE_CHECKING:
    from types import TracebackType

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


class GroupManager:
    """Leads another manager: a group starts when every task of the one before it has ended, however it ended."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self._groups: deque[tuple[Task, ...]] = deque()
        self._current: tuple[Task, ...] = ()

    @property
    def server(self) -> Server:
        """The server that the tasks emit to."""
        return self.manager.server

    @property
    def groups(self) -> tuple[tuple[Task, ...], ...]:
        """The groups that have not begun, in order."""
        return tuple(self._groups)

    def add_group(self, tasks: Iterable[Task]) -> tuple[Task, ...]:
        """Want some tasks, together, after all that was added before."""
        group = tuple(tasks)
        self._groups.append(group)
        return group

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
        for place, group in enumerate(self._groups):
            if task in group:
                self._groups[place] = tuple(other for other in group if other is not task)
                return True
        return self.manager.cancel(task)

    def tick(self) -> bool:
        """Do what can be done now, without waiting; True while anything waits or runs, in any group."""
        busy = self.manager.tick()
        while not busy and self._advance():
            busy = self.manager.tick()
        return busy or bool(self._groups) or not self._ended()

    def wait(self, timeout: float) -> None:
        """Return after ``timeout`` seconds, or earlier if `tick` has something to do."""
        self.manager.wait(timeout)

    def run(self) -> None:
        """Tick until every group has ended. Sleeps while nothing happens."""
        while self.tick():
            self.manager.wait(1.0)

    def close(self) -> None:
        """Forget the groups that have not begun, stop what runs, and end."""
        self._groups.clear()
        self.manager.close()

    def __enter__(self) -> GroupManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ended(self) -> bool:
        return all(task.done() for task in self._current)

    def _advance(self) -> bool:
        """Begin the next group, whole, if the present one has ended; False if there is nothing to begin."""
        if not self._groups or not self._ended():
            return False
        self._current = self._groups.popleft()
        for task in self._current:
            self.manager.add_task(task)
        return True
