"""Owner: what every manager does alike: it is ticked until what it was asked for has ended."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Self

from doorman.errors import ResultTimeout

if TYPE_CHECKING:
    from types import TracebackType

    from doorman.rules import Rule, Rules
    from doorman.task import Task
    from remit import Server

__all__ = ["Owner"]

LONG: Final = 60.0
"""Seconds that `Owner.run` and `Owner.run_until` wait at a time at the most."""


class Owner:
    """A manager to which tasks are added. Nothing happens but in `tick`, in the thread that made the manager."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._soon: deque[Callable[[], object]] = deque()

    server: Server
    """Where its tasks emit to."""
    rules: Rules
    """May a task start now; without rules all start at once."""

    def add_task(self, task: Task) -> Task:
        """Want a task; it starts in a later tick. Raises TaskNotPicklable, TaskAlreadyAdded."""
        raise NotImplementedError

    def add_rule(self, rule: Rule) -> None:
        """Obey one more rule from now on."""
        self.rules.add(rule)

    def remove_rule(self, rule: Rule) -> bool:
        """Obey it no more; False if it was not there."""
        return self.rules.remove(rule)

    def emit_to(self, task: Task, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Emit an event to a running task. Raises ValueError if it does not run."""
        raise NotImplementedError

    def tick(self) -> bool:
        """Do what can be done now, without waiting; True while anything waits or runs."""
        raise NotImplementedError

    def wait(self, timeout: float) -> None:
        """Return after ``timeout`` seconds, or earlier if `tick` has something to do."""
        raise NotImplementedError

    @property
    def owned_here(self) -> bool:
        """Whether the calling thread is the one that made it, and so the one that ticks it."""
        return threading.get_ident() == self._thread

    def call_soon(self, function: Callable[[], object]) -> None:
        """Have ``function()`` called in the next tick, and whoever waits for that woken. Safe from any thread."""
        self._soon.append(function)
        if not self.owned_here:
            self.server.keeping.waker.wake()

    def _do_soon(self) -> None:
        """Call what was asked to be called by now; what that asks for has its turn in the next tick."""
        for _ in range(len(self._soon)):
            self._soon.popleft()()

    @property
    def waiting(self) -> tuple[Task, ...]:
        """The tasks that have not begun, in order."""
        raise NotImplementedError

    @property
    def running(self) -> tuple[Task, ...]:
        """The tasks that have begun and not ended."""
        raise NotImplementedError

    @property
    def busy(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self.waiting or self.running)

    def why(self, task: Task) -> str | None:
        """Return what held a waiting task back in the last tick, in words with figures; None if nothing did."""
        raise NotImplementedError

    def cancel(self, task: Task) -> bool:
        """Drop a waiting task or stop a running one; False if it has ended."""
        raise NotImplementedError

    def stop(self) -> None:
        """Cancel everything that waits or runs; `tick` until it has ended."""
        for task in (*self.waiting, *self.running):
            self.cancel(task)

    def close(self) -> None:
        """Stop what runs, drop what waits, and end. May be called twice."""
        raise NotImplementedError

    def run(self, timeout: float | None = None) -> None:
        """Tick until nothing waits or runs, or ``timeout`` seconds have passed. Sleeps while nothing happens."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.tick():
            left = LONG if deadline is None else deadline - time.monotonic()
            if left <= 0:
                return
            self.wait(min(left, LONG))

    def run_until(self, task: Task, timeout: float | None) -> None:
        """Make progress until ``task`` has ended. Raises ResultTimeout; RuntimeError in another thread."""
        if not self.owned_here:
            raise RuntimeError("only the thread that owns the manager can wait for a task; others may ask task.done()")
        deadline = None if timeout is None else time.monotonic() + timeout
        while not task.done():
            left = LONG if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise ResultTimeout(f"{task!r} has not ended within {timeout} s")
            self.tick()
            if not task.done():
                self.wait(min(left, LONG))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
