"""Dependencies: which tasks wait for the end of others. Each end is looked at once, and nothing else."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from doorman.errors import DependencyFailed
from doorman.states import State
from doorman.task import Task

__all__ = ["Dependencies"]

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


def _failure(task: Task, first: Task) -> DependencyFailed:
    error = DependencyFailed(f"task {task.name!r} comes after {first!r}, which did not end well")
    error.__cause__ = first.exception()
    return error
