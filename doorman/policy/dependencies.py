"""Dependencies: which tasks wait for the end of others. Each end is looked at once, and nothing else."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from doorman.errors import DependencyFailed
from doorman.states import State

if TYPE_CHECKING:
    from doorman.owner import Owner
    from doorman.task import Task

__all__ = ["Dependencies", "check_owners", "checked"]

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
                first.when_ended(self._ended.append)
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


def checked(after: object) -> tuple[Task, ...]:
    """Return the tasks that another is to come after. Raises TypeError."""
    from doorman.task import Task

    found = tuple(after) if isinstance(after, Iterable) else (after,)
    for first in found:
        if not isinstance(first, Task):
            raise TypeError(f"after is a sequence of tasks, such as (first, second), but {first!r} is none")
    return found


def check_owners(task: Task, owner: Owner) -> None:
    """Raise ValueError if the task comes after itself, or after one that is not the same manager's."""
    for first in task.after:
        theirs = first.owner
        if theirs is None:
            if _reaches(first, task):
                raise ValueError(f"{task!r} and {first!r} come after each other: neither could ever start")
            raise ValueError(f"{task!r} comes after {first!r}, which no manager has: add that one first")
        if theirs.realm is not owner.realm:
            raise ValueError(
                f"{task!r} comes after {first!r}, which is another manager's: add both to one, "
                "or wait for the other's result first"
            )


def _reaches(start: Task, goal: Task) -> bool:
    seen, ahead = {start}, [start]
    while ahead:
        task = ahead.pop()
        if task is goal:
            return True
        new = set(task.after) - seen
        seen |= new
        ahead += new
    return False


def _failure(task: Task, first: Task) -> DependencyFailed:
    error = DependencyFailed(f"task {task.name!r} comes after {first!r}, which did not end well")
    error.__cause__ = first.exception()
    return error
