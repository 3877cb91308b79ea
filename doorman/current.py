"""The task whose code runs in this process: its name and attempt, its events and its progress."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from doorman.errors import NotInTask
from doorman.progress import Progress, make_progress

__all__ = ["CurrentTask", "current_task", "task_context"]


class CurrentTask:
    """The task whose code runs in this process."""

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
        """The number of this attempt; 1 is the first."""
        self._emit = emit
        self._listen = listen
        self._report = report

    def emit(self, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Emit an event to the listeners of ``manager.server``, as `remit.Client.emit` does."""
        self._emit(name, args, kwargs)

    def on(self, name: str, listener: Callable[..., Any]) -> None:
        """Call ``listener(*args, **kwargs)`` in a thread for each event that `ProcessManager.emit_to` sends."""
        self._listen(name, listener)

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Report the progress of this task, which becomes `Task.progress`. May be called at any rate.

        About twenty reports a second are sent, and always the last one. Raises TypeError if a value is not a number,
        and NotInTask in a fork of the task's process.
        """
        self._report(make_progress(done, total, note))


_current: CurrentTask | None = None


def current_task() -> CurrentTask:
    """Return the task whose code runs in this process. Raises NotInTask."""
    if _current is None:
        raise NotInTask("no task runs in this process: current_task() is for the code that a task calls")
    return _current


@contextlib.contextmanager
def task_context(task: CurrentTask) -> Iterator[None]:
    """Make ``task`` the current task for a block."""
    global _current
    before, _current = _current, task
    try:
        yield
    finally:
        _current = before
