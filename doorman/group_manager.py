"""Groups: tasks that run group after group; the members of one run together, as the rules allow."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Final, Literal, TypeAlias

from doorman._scheduler.base_manager import BaseManager
from doorman.errors import TaskCancelled
from doorman.states import State
from doorman.task import Task

__all__ = ["GroupManager", "OnFailure"]


OnFailure: TypeAlias = Literal["continue", "stop"]
_POLICIES: Final = ("continue", "stop")
_FAILURES: Final = (State.FAILED, State.EXPIRED, State.LOST)
"""Ends of a task by which its group has failed. Who cancels a task has decided that nobody needs it."""


class GroupManager(BaseManager):
    """Leads another manager: a group starts when every task of the one before it has ended.

    on_failure -- what a group does in which a task failed, expired or was lost, once all its tasks have ended:
    ``"continue"`` with the next group, or ``"stop"``: every group after it is cancelled, until `resume`

    Several may lead one manager: each keeps its own order, and the manager's rules hold for all of them together.
    Leaving its block closes the manager that it leads. Raises ValueError.
    """

    def __init__(self, manager: BaseManager, *, on_failure: OnFailure = "continue") -> None:
        super().__init__()
        self.manager, self.server, self.rules = manager, manager.server, manager.rules
        self._shutdown_timeout = manager._shutdown_timeout
        self.on_failure: OnFailure = _policy(on_failure)
        self.failed: tuple[Task, ...] = ()
        """The tasks because of which it was stopped; empty while it goes on."""
        self._groups: deque[_Group] = deque()
        self._current = _Group(on_failure)
        self._closed = False

    @property
    def _inner(self) -> BaseManager:
        """The manager that runs its tasks."""
        return self.manager

    @property
    def groups(self) -> tuple[tuple[Task, ...], ...]:
        """The groups that have not begun, in order."""
        return tuple(tuple(group) for group in self._groups)

    @property
    def waiting(self) -> tuple[Task, ...]:
        """Its tasks that have not begun, in order: those of the present group first."""
        present = tuple(task for task in self.manager.waiting if task in self._current)
        return (*present, *(task for group in self._groups for task in group))

    @property
    def running(self) -> tuple[Task, ...]:
        """Its tasks that have begun and not ended."""
        return tuple(task for task in self.manager.running if task in self._current)

    @property
    def busy(self) -> bool:
        """Whether anything waits or runs, in any group, or anything else of the manager that it leads."""
        return self.manager.busy or bool(self._groups)

    def why(self, task: Task) -> str | None:
        """Return what holds a waiting task back, in words with figures: its group's turn, or what its manager says."""
        for before, group in enumerate(self._groups):
            if task in group:
                left = sum(not member.done() for member in self._current)
                now = f"{left} of {len(self._current)} tasks of the present group have yet to end"
                return f"{now}; groups between that and its own: {before}"
        return self.manager.why(task)

    def add_group(self, tasks: Iterable[Task], *, on_failure: OnFailure | None = None) -> tuple[Task, ...]:
        """Want some tasks, together, after all that was added before; all of them or, if it raises, none.

        ``on_failure`` is what this group does instead of what the manager does. Raises TaskNotPicklable,
        TaskAlreadyAdded, ValueError.
        """
        if self._closed:
            raise ValueError("this manager is closed")
        group = _Group(self.on_failure if on_failure is None else _policy(on_failure))
        try:
            for task in tasks:
                group[task] = task._adopt(self)
        except BaseException:
            for task in group:
                task._release()
            raise
        self._groups.append(group)
        self._wake_loop()
        return tuple(group)

    def add_task(self, task: Task) -> Task:
        """Want one task, after all that was added before: a group of its own."""
        self.add_group([task])
        return task

    def emit_to(self, task: Task, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Emit an event to a running task, as the manager that it leads does."""
        self.manager.emit_to(task, name, *args, **kwargs)

    def cancel(self, task: Task) -> bool:
        """Drop a task whose group has not begun, or cancel one that waits or runs; False if it has ended."""
        for group in self._groups:
            if group.pop(task, None) is not None:
                task._finish(State.CANCELLED)
                return True
        return self.manager.cancel(task)

    def resume(self) -> None:
        """Go on after a failure: groups that are added from now on run again."""
        if self.failed:
            self.failed, self._current = (), _Group(self.on_failure)

    def tick(self) -> bool:
        """Do what can be done now, without waiting; True while anything waits or runs, in any group."""
        self._run_scheduled_calls()
        busy = self.manager.tick()
        if self._start_next_group():
            busy = self.manager.tick()
        return busy or bool(self._groups)

    def wait(self, timeout: float) -> None:
        """Return after ``timeout`` seconds, or earlier if `tick` has something to do."""
        self.manager.wait(0.0 if self._scheduled_calls or (self._groups and self._current_done()) else timeout)

    def close(self) -> None:
        """Cancel the groups that have not begun, stop what runs, and end. May be called twice."""
        self._closed = True
        self._detach_loop()
        for group in self.groups:
            for task in group:
                self.cancel(task)
        self._groups.clear()
        self.manager.close()

    def _current_done(self) -> bool:
        return all(task.done() for task in self._current)

    def _start_next_group(self) -> bool:
        """Begin the next group, whole, if the present one has ended; False if there is nothing to begin."""
        if not self._current_done():
            return False
        if self._current.on_failure == "stop":
            self.failed = tuple(task for task in self._current if task.state in _FAILURES)
        if self.failed:
            self._cancel_rest(self.failed[0])
        if self.failed or not self._groups:
            return False
        self._current = self._groups.popleft()
        self._submit(self._current)
        return True

    def _submit(self, group: _Group) -> None:
        """Hand a group to the manager. If that takes no more, what it has not taken is cancelled."""
        for task, call in group.items():
            task._release(call)
        left = list(group)
        try:
            if isinstance(self.manager, GroupManager):
                self.manager.add_group(group)  # Added one by one they would be groups of their own.
                return
            while left:
                self.manager.add_task(left[0])
                del left[0]
        except BaseException as error:
            for task in left:
                _cancel(task, f"task {task.name!r} was not taken by its manager: {error}", error)
            raise

    def _cancel_rest(self, failed: Task) -> None:
        """End the tasks of all groups that have not begun."""
        why = f"task {failed.name!r} of a group before it {_PAST[failed.state]}; resume() lets later groups run"
        groups, self._groups = self._groups, deque()  # Who hears of an end may add another group.
        for task in (task for group in groups for task in group):
            _cancel(task, f"task {task.name!r} was not started: {why}", failed.exception(0))


_PAST: Final = {State.FAILED: "failed", State.EXPIRED: "expired", State.LOST: "was lost"}


class _Group(dict[Task, bytes]):
    """The tasks of one group with their calls, and what it does if one fails."""

    def __init__(self, on_failure: OnFailure) -> None:
        super().__init__()
        self.on_failure = on_failure


def _policy(on_failure: OnFailure) -> OnFailure:
    if on_failure not in _POLICIES:
        raise ValueError(f"on_failure is one of {', '.join(map(repr, _POLICIES))}, not {on_failure!r}")
    return on_failure


def _cancel(task: Task, why: str, cause: BaseException | None) -> None:
    error = TaskCancelled(why)
    error.__cause__ = cause
    task._finish(State.CANCELLED, error=error)
