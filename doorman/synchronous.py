"""Synchronous: the managers' surface without processes: each task runs right here, one after the other."""

from __future__ import annotations

import os
import secrets
import subprocess
import traceback
from typing import TYPE_CHECKING, Any

from doorman.current import CurrentTask, entered
from doorman.errors import TaskFailed, WorkerDied
from doorman.identity import Credential, Identity, hello, verify
from doorman.process import Process
from doorman.rules import Rule
from doorman.states import State
from doorman.task import Owner, Task
from remit import Server

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["SynchronousManager"]


class SynchronousManager(Owner):
    """Runs every task that waits when it is ticked, in the order in which they were added, in this very process.

    For tests, for debugging, and where there can be no processes. Rules are kept but hold nobody back, since never more
    than one task runs; expiry cannot stop code of this process. `Task.identity` is this process's own.
    """

    def __init__(self) -> None:
        self.server = Server(f"memory://doorman-{secrets.token_hex(8)}", threaded=False)
        self.rules: list[Rule] = []
        self._waiting: dict[Task, None] = {}

    def add_task(self, task: Task) -> Task:
        """Want a task; it runs in the next tick. Raises TaskAlreadyAdded, TaskNotPicklable."""
        task.adopt(self)
        self._waiting[task] = None
        return task

    def add_rule(self, rule: Rule) -> None:
        """Keep a rule."""
        self.rules.append(rule)

    def remove_rule(self, rule: Rule) -> bool:
        """Drop a rule; False if it was not there."""
        if rule not in self.rules:
            return False
        self.rules.remove(rule)
        return True

    @property
    def waiting(self) -> tuple[Task, ...]:
        """The tasks that have not run yet."""
        return tuple(self._waiting)

    @property
    def running(self) -> tuple[Task, ...]:
        """The task that runs now, as it sees it itself."""
        return tuple(task for task in self._waiting if task.state is State.RUNNING)

    def cancel(self, task: Task) -> bool:
        """Drop a waiting task; False if it runs or has ended."""
        if task.state is not State.WAITING or task not in self._waiting:
            return False
        del self._waiting[task]
        task.end(State.CANCELLED)
        return True

    def tick(self) -> bool:
        """Run every task that waits and may run; True while any waits."""
        for task in list(self._waiting):
            if task.cancel_when is not None and task.cancel_when():
                self.cancel(task)
            if task in self._waiting and (task.can_run is None or task.can_run()):
                self._run(task)
        return bool(self._waiting)

    def wait(self, timeout: float) -> None:
        """Return after ``timeout`` seconds: nothing happens here but in `tick`."""
        self.server.wait(timeout)

    def run(self) -> None:
        """Tick until nothing waits."""
        while self.tick():
            self.wait(0.01)

    def run_until(self, task: Task, timeout: float | None) -> None:
        """Tick until ``task`` has ended; a task's own time has no bound here."""
        while not task.done():
            self.tick()
            if not task.done():
                self.wait(0.01)

    def close(self) -> None:
        """Drop what waits, and end."""
        for task in list(self._waiting):
            self.cancel(task)
        self.server.close()

    def __enter__(self) -> SynchronousManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, task: Task) -> None:
        error: BaseException | None = None
        value: Any = None
        while True:
            task.attempt += 1
            task.identity = _own_identity(task)
            task.enter(State.RUNNING)
            try:
                with entered(CurrentTask(task.name, task.attempt, self._emit)):
                    value, error = _call(task), None
            except Exception as raised:  # noqa: BLE001 - one task that raises must not stop the others
                error = raised
                error.__cause__ = error.__cause__ or TaskFailed("".join(traceback.format_exception(raised)))
            if error is None or task.attempt > task.retries:
                break
            task.enter(State.WAITING)
        self._waiting.pop(task, None)
        task.end(State.DONE if error is None else State.FAILED, value, error)

    def _emit(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.server.emit(name, *args, **kwargs)


def _call(task: Task) -> Any:
    if not task.argv:
        return task.fn(*task.args, **task.kwargs)
    done = subprocess.run([*task.wrapper, *task.argv], cwd=task.cwd, env=task.env, check=False)
    task.exit_code = done.returncode
    if done.returncode:
        raise WorkerDied(None, done.returncode, None, f"{task.argv[0]} failed")
    return 0


def _own_identity(task: Task) -> Identity:
    credential = Credential(f"{task.id}.{task.attempt}", task=task.id)
    with Process.open(os.getpid()) as process:
        return verify(hello(credential), credential, process)
