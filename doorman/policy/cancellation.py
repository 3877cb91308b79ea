"""Cancellation: the tasks that are asked in each tick, waiting or running, whether they are still wanted."""

from __future__ import annotations

from collections.abc import Callable

from doorman.task import Task

__all__ = ["Cancellation"]


class Cancellation:
    """The tasks of one manager that have a `cancel_when`."""

    def __init__(self) -> None:
        self._asked: dict[Task, None] = {}

    def __len__(self) -> int:
        return len(self._asked)

    def add(self, task: Task) -> None:
        """Ask a task from now on, if it has anything to ask."""
        if task.cancel_when is not None:
            self._asked[task] = None

    def forget(self, task: Task) -> None:
        """Ask it no more."""
        self._asked.pop(task, None)

    def ask(self, cancel: Callable[[Task], object], fail: Callable[[Task, BaseException], object]) -> None:
        """Give those that are not wanted any more to ``cancel``, those whose question raises to ``fail``."""
        for task in list(self._asked):
            try:
                cancelled = task.cancel_when is not None and task.cancel_when()
            except Exception as error:  # noqa: BLE001 - a question of one task's must not stop the others
                self.forget(task)
                fail(task, error)
                continue
            if cancelled:
                self.forget(task)
                cancel(task)
