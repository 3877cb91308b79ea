"""Current: what a task can know of itself while it runs, and how it speaks to its manager."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from doorman.errors import NotInTask
from doorman.progress import Progress, make_progress

__all__ = ["CurrentTask", "current_task", "task_context"]


class CurrentTask:
    """The task that runs here."""

    def __init__(
        self,
        name: str,
        attempt: int,
        emit: Callable[[str, tuple[Any, ...], dict[str, Any]], None],
        listen: Callable[[str, Callable[..., Any]], None],
        report: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        self.name = name
        self.attempt = attempt
        """Which try this is; 1 is the first."""
        self._emit = emit
        self._listen = listen
        self._report = report

    def emit(self, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Emit an event to the listeners of ``manager.server``, acknowledged; see `remit.Client.emit`."""
        self._emit(name, args, kwargs)

    def on(self, name: str, listener: Callable[..., Any]) -> None:
        """Call ``listener(*args, **kwargs)``, in a thread of its own, for what the manager emits to this task.

        See `ProcessManager.emit_to`.
        """
        self._listen(name, listener)

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Say how far this task has come: `Task.progress` there. Call it as often as you like.

        Some twenty reports a second travel, and the last one always. Raises TypeError for what is no number, NotInTask
        in a fork of the task's process.
        """
        self._report(make_progress(done, total, note))


_current: CurrentTask | None = None


def current_task() -> CurrentTask:
    """Return the task whose code is running in this process. Raises NotInTask."""
    if _current is None:
        raise NotInTask("no task runs in this process: current_task() is for the code that a task calls")
    return _current


@contextlib.contextmanager
def task_context(task: CurrentTask) -> Iterator[None]:
    """Make ``task`` the current one for a block."""
    global _current
    before, _current = _current, task
    try:
        yield
    finally:
        _current = before
