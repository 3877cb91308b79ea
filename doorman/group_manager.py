"""A manager that runs groups of tasks, one group after the other."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterable
from typing import Any, Literal, TypeAlias, get_args

from doorman._scheduler.base_manager import BaseManager
from doorman.errors import TaskCancelled
from doorman.states import ABNORMAL, State
from doorman.task import Task
from remit.options import check_choice

__all__ = ["GroupManager"]

OnFailure: TypeAlias = Literal["continue", "stop"]


class GroupManager(BaseManager):
    """Runs groups of tasks on an inner manager: a group starts when all tasks of the previous one have finished.

    on_failure -- after a group in which a task failed, expired or was lost: ``"continue"`` with the next group, or
    ``"stop"``: cancel all later groups, until `resume`

    The tasks of one group run in parallel, as the rules allow. Group managers may share an inner manager: each keeps
    its own order, and the rules apply to the tasks of all. Leaving the block closes the inner manager too.
    Raises ValueError.
    """

    def __init__(self, manager: BaseManager, *, on_failure: OnFailure = "continue") -> None:
        super().__init__()
        self.manager, self.server, self.rules = manager, manager.server, manager.rules
        self._requests = manager._requests
        self.on_failure: OnFailure = on_failure
        self.failed: tuple[Task, ...] = ()
        """The failed tasks that stopped it; empty while it continues."""
        self._groups: deque[_Group] = deque()
        self._current = _Group(on_failure)
        self._closed = False

    @property
    def _inner(self) -> BaseManager:
        return self.manager

    @property
    def groups(self) -> tuple[tuple[Task, ...], ...]:
        """The groups that have not started, in order."""
        return tuple(tuple(group) for group in tuple(self._groups))

    @property
    def waiting(self) -> tuple[Task, ...]:
        """Its tasks that have not started, in order: those of the current group first."""
        present = tuple(task for task in self.manager.waiting if task in self._current)
        return (*present, *(task for group in self.groups for task in group if self._holds(task)))

    @property
    def running(self) -> tuple[Task, ...]:
        """Its tasks that have started and not finished."""
        return tuple(task for task in self.manager.running if task in self._current)

    @property
    def busy(self) -> bool:
        """Whether any task waits or runs, in any group or elsewhere on the inner manager."""
        return self.manager.busy or bool(self._groups)

    def why(self, task: Task) -> str | None:
        """Return why a waiting task has not started: an earlier group, or the reason of the inner manager."""
        for before, group in enumerate(tuple(self._groups)):
            if task in group and group is not self._current:
                left = sum(not member.done() for member in self._current)
                now = f"{left} of {len(self._current)} tasks of the current group have not finished"
                return f"{now}; groups between that and its own: {before}"
        return self.manager.why(task)

    def add_group(self, tasks: Iterable[Task], *, on_failure: OnFailure | None = None) -> tuple[Task, ...]:
        """Queue tasks as one group, behind all earlier groups. After an error none of them is added.

        ``on_failure`` replaces that of the manager. Raises TaskNotPicklable, TaskAlreadyAdded, ValueError.
        """
        if self._closed:
            raise ValueError("this manager is closed")
        group = _Group(self.on_failure if on_failure is None else on_failure)
        given = tuple(tasks)
        mine = [task for task in given if task._manager is None]
        try:
            for task in given:
                group[task] = task._adopt(self)
            self._groups.append(group)
        except BaseException:
            if not any(each is group for each in tuple(self._groups)):
                for task in mine:
                    task._release()  # It can be added again.
            raise
        self._wake_loop()
        return tuple(group)

    def add_task(self, task: Task) -> Task:
        """Queue one task as a group of its own."""
        self.add_group([task])
        return task

    def emit_to(self, task: Task, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Emit an event to a running task, as the inner manager does."""
        self.manager.emit_to(task, name, *args, **kwargs)

    def cancel(self, task: Task) -> bool:
        """Remove a task whose group has not started, or cancel one that waits or runs; False if it has finished."""
        for group in tuple(self._groups):
            if task in group and self._holds(task):
                self._requests.put(functools.partial(_cancel_queued, group, task))
                return True
        return self.manager.cancel(task)

    def resume(self) -> None:
        """Continue after a failure: groups that are added from now on run again."""
        self._requests.put(self._resume)

    def _resume(self, again: bool) -> None:
        if self.failed:
            self.failed, self._current = (), _Group(self.on_failure)

    def tick(self) -> bool:
        """Process all that is pending, without waiting; True while any task waits or runs, in any group."""
        busy = self.manager.tick()  # First: it raises ReentrantTick in a nested call.
        self._requests.guard(self._run_scheduled_calls)
        # The second tick launches the new group now: otherwise each group would cost one more wait of the caller.
        if self._requests.guard(self._start_next_group):
            busy = self.manager.tick()
        self._requests.run()  # Of nested calls.
        return busy or bool(self._groups)

    def wait(self, timeout: float) -> None:
        """Return after ``timeout`` seconds, or earlier if there is work for `tick`."""
        ready = self._groups and (self._groups[0] is self._current or self._current_done())
        self.manager.wait(0.0 if self._scheduled_calls or ready else timeout)

    def close(self) -> None:
        """Cancel the groups that have not started, and close the inner manager. May be called twice."""
        self._closed = True
        self._detach_loop()
        for group in self.groups:
            for task in group:
                self.cancel(task)
        self._groups.clear()
        self.manager.close()

    @property
    def _outlived(self) -> bool:
        return self._closed or self.manager._outlived

    def _holds(self, task: Task) -> bool:
        """Return whether the inner manager does not have a task of a group: it, or its group, has not started."""
        return task._manager is self or task._manager is None

    def _current_done(self) -> bool:
        return all(task.done() for task in self._current)

    def _start_next_group(self) -> bool:
        """Start the next group if the current one has finished; False if none was started."""
        if not self._groups or self._groups[0] is not self._current:
            if not self._current_done():
                return False
            if self._current.on_failure == "stop":
                self.failed = tuple(task for task in self._current if task.state in ABNORMAL)
            if self.failed:
                self._cancel_rest(self.failed[0])
            if self.failed or not self._groups:
                return False
            self._current = self._groups[0]
        if not self._current.submitted:
            self._submit(self._current)
        self._groups.popleft()  # Last: after an exception before, the next tick continues.
        return True

    def _submit(self, group: _Group) -> None:
        """Add a group to the inner manager. If it refuses a task, cancel this one and the rest of the group."""
        # The inner manager adopts the tasks again, with the arguments that `add_group` has pickled.
        for task, call in group.items():
            if task._manager is self:
                task._release(call)
        # After an interrupt only those that the inner manager does not have.
        left = [task for task in group if task._manager is None]
        try:
            if isinstance(self.manager, GroupManager):
                self.manager.add_group(left)  # `add_task` would make each a group of its own.
                left = []
            while left:
                self.manager.add_task(left[0])
                del left[0]
            group.submitted = True
        except ValueError as error:  # A refusal; after an exception of a signal handler, the next tick continues.
            group.submitted = True
            for task in left:
                if task._manager is None:
                    _cancel(task, f"task {task.name!r} was refused by its manager: {error}", error)
            raise

    def _cancel_rest(self, failed: Task) -> None:
        """Cancel the tasks of all groups that have not started."""
        ended = "was lost" if failed.state is State.LOST else str(failed.state)
        why = f"task {failed.name!r} of a group before it {ended}; resume() lets later groups run"
        for _ in range(len(self._groups)):  # A done callback may add another group.
            for task in tuple(self._groups[0]):
                _cancel(task, f"task {task.name!r} was not started: {why}", failed.exception(0))
            self._groups.popleft()


class _Group(dict[Task, bytes]):
    """The tasks of one group with their pickled calls, and its policy for failures."""

    def __init__(self, on_failure: OnFailure) -> None:
        super().__init__()
        check_choice("on_failure", on_failure, get_args(OnFailure))
        self.on_failure = on_failure
        self.submitted = False  # Whether the inner manager has its tasks.


def _cancel_queued(group: _Group, task: Task, again: bool) -> None:
    task._finish(State.CANCELLED, again=True)
    group.pop(task, None)  # Last: after an interrupt above, this is called again.


def _cancel(task: Task, why: str, cause: BaseException | None) -> None:
    error = TaskCancelled(why)
    error.__cause__ = cause
    task._finish(State.CANCELLED, error=error, again=True)
