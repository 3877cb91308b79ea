"""Owner: what every manager does alike: it is ticked until what it was asked for has ended."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any, Final, Self

from doorman.errors import ResultTimeout
from doorman.futures import IDLE_WAIT_S
from doorman.rules import Rule, Rules
from doorman.task import Life, Task, check_listeners
from remit import Server

if TYPE_CHECKING:
    from types import TracebackType

    from doorman._scheduler.event_loop import LoopDriver

__all__ = ["BaseManager", "check_listeners"]


SHUTDOWN_TIMEOUT_S: Final = 10.0
"""Seconds that leaving a manager takes at the most, unless it says otherwise."""


class BaseManager:
    """A manager to which tasks are added. Nothing happens but in `tick`, in the thread that made the manager.

    Entered by ``async with`` it is ticked by the event loop instead, and `run` and its tasks are awaited.
    """

    _shutdown_timeout: float = SHUTDOWN_TIMEOUT_S
    """Seconds that leaving a manager takes at the most."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._scheduled_calls: deque[Callable[[], object]] = deque()
        self._loop_driver: LoopDriver | None = None
        """What ticks it, inside ``async with``."""

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
        self._wake_loop()

    def remove_rule(self, rule: Rule) -> bool:
        """Obey it no more; False if it was not there."""
        self._wake_loop()
        return self.rules.remove(rule)

    def emit_to(self, task: Task, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Emit an event to a running task. Raises ValueError if it does not run."""
        raise NotImplementedError

    @property
    def _inner(self) -> BaseManager | None:
        """The manager that it leads, which runs its tasks; None if it runs them itself."""
        return None

    @property
    def _root(self) -> BaseManager:
        """The manager that runs the tasks in the end."""
        return self if self._inner is None else self._inner._root

    def tick(self) -> bool:
        """Do what can be done now, without waiting; True while anything waits or runs."""
        raise NotImplementedError

    def wait(self, timeout: float) -> None:
        """Return after ``timeout`` seconds, or earlier if `tick` has something to do."""
        raise NotImplementedError

    @property
    def _owned_here(self) -> bool:
        """Whether the calling thread is the one that made it, and so the one that ticks it."""
        return threading.get_ident() == self._thread

    def _call_soon(self, function: Callable[[], object]) -> None:
        """Have ``function()`` called in the next tick, and whoever waits for that woken. Safe from any thread."""
        self._scheduled_calls.append(function)
        if self._loop_driver is not None or not self._owned_here:
            self.server.wake()

    def _run_scheduled_calls(self) -> None:
        """Call what was asked to be called by now; what that asks for has its turn in the next tick."""
        for _ in range(len(self._scheduled_calls)):
            self._scheduled_calls.popleft()()

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

    def run(self, timeout: float | None = None) -> Awaitable[None]:
        """Tick until nothing waits or runs, or ``timeout`` seconds have passed. Sleeps while nothing happens.

        Inside ``async with`` it is awaited: ``await manager.run()``.
        """
        if self._loop_driver is not None:
            return self._loop_driver.run(timeout)
        self._run(timeout)
        return _Done()

    def _run(self, timeout: float | None) -> None:
        """Do what `run` does without a loop."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.tick():
            left = IDLE_WAIT_S if deadline is None else deadline - time.monotonic()
            if left <= 0:
                return
            self.wait(min(left, IDLE_WAIT_S))

    def _run_until(self, task: Life, timeout: float | None) -> None:
        """Make progress until ``task`` has ended. Raises ResultTimeout; RuntimeError in another thread."""
        if not self._owned_here:
            raise RuntimeError("only the thread that owns the manager can wait for a task; others may ask task.done()")
        if self._loop_driver is not None and not task.done():
            raise RuntimeError(f"{task!r} has not ended, and to wait here would stop its event loop: `await` the task")
        deadline = None if timeout is None else time.monotonic() + timeout
        while not task.done():
            left = IDLE_WAIT_S if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise ResultTimeout(f"{task!r} has not ended within {timeout} s")
            self.tick()
            if not task.done():
                self.wait(min(left, IDLE_WAIT_S))

    async def _wait_ended(self, task: Life) -> None:
        """Return when ``task`` has ended. Raises RuntimeError outside ``async with``."""
        if self._loop_driver is None:
            raise RuntimeError(f"{task!r} has not ended: await it inside `async with` its manager, or use result()")
        await self._loop_driver.wait_ended(task)

    # -- for the managers themselves ---------------------------------------------------------------------------

    def _begin_shutdown(self) -> None:
        """Begin to leave: let go of what outlives it, and `stop` the rest."""
        self.stop()

    def _wake_loop(self) -> None:
        """Have an event loop tick it soon, where there is one: somebody wants something else now."""
        if self._loop_driver is not None:
            self._loop_driver.schedule_tick()

    def _check_loop_turn(self) -> None:
        """Raise RuntimeError if an event loop ticks this manager, and it is not its tick."""
        if self._loop_driver is not None and not self._loop_driver.ticking:
            raise RuntimeError("inside `async with` the event loop ticks the manager: `await manager.run()` or a task")

    def _detach_loop(self) -> None:
        """Have no event loop tick it any more."""
        if self._loop_driver is not None:
            self._loop_driver.detach()

    # -- blocks ------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        from doorman._scheduler.event_loop import (
            LoopDriver,  # Here, for those who use asyncio: others need not pay for its import.
        )

        LoopDriver(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._loop_driver is None:  # Closed already.
            self.close()
            return
        failed = await self._loop_driver.leave()
        if failed is not None and error is None:
            raise failed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Done:
    """What is awaited of something that has been done already."""

    def __await__(self) -> Generator[Any, None, None]:
        yield from ()
