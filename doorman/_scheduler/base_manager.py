"""The base of all managers: ticking, waiting, asyncio, and the methods that each manager implements."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Generator
from typing import TYPE_CHECKING, Any, Final, Self

from doorman.errors import ResultTimeout, TaskAlreadyAdded
from doorman.futures import IDLE_WAIT_S
from doorman.rules import Rule, Rules
from doorman.task import Task
from remit import Server
from remit.errors import ReentrantTick

if TYPE_CHECKING:
    from types import TracebackType

    from doorman._scheduler.event_loop import LoopDriver
    from doorman._scheduler.request_queue import RequestQueue

logger = logging.getLogger("doorman")

SHUTDOWN_TIMEOUT_S: Final = 10.0
"""Default for the longest duration of leaving a manager's block."""


class BaseManager:
    """A manager to which tasks are added. All work happens in `tick`, in the thread that created the manager.

    Inside ``async with`` the event loop ticks it, and `run` and its tasks are awaited.
    """

    _shutdown_timeout: float = SHUTDOWN_TIMEOUT_S

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        # Any thread appends, the ticking thread pops: both are atomic operations of a deque, so there is no lock.
        self._scheduled_calls: deque[Callable[[], object]] = deque()
        self._loop_driver: LoopDriver | None = None  # set inside `async with`

    _ticking = False
    _same_files = True
    """Whether its processes have the files of this one, so that they can import the user's script."""
    server: Server
    """The server that receives the events of its tasks."""
    rules: Rules
    """The conditions for starting a task; without rules each starts in the next tick."""
    _requests: RequestQueue
    """The changes of its tasks, one at a time; a group manager shares the queue of its inner manager."""

    def add_task(self, task: Task) -> Task:
        """Queue a task; it starts in a later tick. Raises TaskNotPicklable, TaskAlreadyAdded."""
        raise NotImplementedError

    def _add(self, task: Task, place: Callable[[Task, bytes], object], has: Callable[[Task], bool]) -> Task:
        if task._manager is not None:
            raise TaskAlreadyAdded(f"{task!r} was added before; make a new task for each run")
        try:
            place(task, task._adopt(self))
        except BaseException:
            if task._manager is self and not has(task) and not task.done():
                task._release()  # It can be added again.
            raise
        self._wake_loop()
        return task

    def add_rule(self, rule: Rule) -> None:
        """Apply one more rule from now on."""
        self.rules.add(rule)
        self._wake_loop()

    def remove_rule(self, rule: Rule) -> bool:
        """Remove a rule; False if the manager does not have it."""
        self._wake_loop()
        return self.rules.remove(rule)

    def emit_to(self, task: Task, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Emit an event to a running task. Raises ValueError if it does not run."""
        raise NotImplementedError

    @property
    def _inner(self) -> BaseManager | None:
        """The manager that runs its tasks; None if it runs them itself."""
        return None

    @property
    def _root(self) -> BaseManager:
        """The innermost manager, which runs the tasks."""
        return self if self._inner is None else self._inner._root

    def tick(self) -> bool:
        """Process all that is pending, without waiting; True while any task waits or runs."""
        self._check_loop_turn()
        if self._ticking or self._requests.active:
            raise ReentrantTick("tick() was called from a task or a listener: let it return, and wait outside it")
        # No `finally`: an exception that a signal handler raises at its first line would leave the flag set.
        try:
            self._ticking = True
            self._tick()
            self._ticking = False
        except BaseException:
            self._ticking, self._requests.damaged = False, True
            self._after_interrupt()
            raise
        return self.busy

    def _tick(self) -> None:
        raise NotImplementedError

    def _after_interrupt(self) -> None:
        pass

    def wait(self, timeout: float) -> None:
        """Return after ``timeout`` seconds, or earlier if there is work for `tick`."""
        raise NotImplementedError

    @property
    def _owned_here(self) -> bool:
        """Whether the calling thread owns it: the one that ticked it last, or that created it."""
        return threading.get_ident() == self._root._thread

    def _call_soon(self, function: Callable[[], object]) -> None:
        """Call ``function()`` in the next tick, and wake a wait for it. Safe from any thread."""
        self._scheduled_calls.append(function)
        # A wake costs a system call, and in the owner's thread no wait is in progress.
        if self._loop_driver is not None or not self._owned_here:
            self.server.wake()

    def _run_scheduled_calls(self) -> None:
        """Call the functions of `_call_soon`. A function that one of them adds is called in the next tick."""
        for _ in range(len(self._scheduled_calls)):
            function = self._scheduled_calls[0]
            try:
                function()
            except Exception:
                with contextlib.suppress(Exception):
                    function()  # It may be that of a signal handler, which has left it incomplete.
                self._scheduled_calls.popleft()
                raise
            # Only now: after an interrupt, such as Ctrl-C, the next tick calls the function again.
            self._scheduled_calls.popleft()

    @property
    def waiting(self) -> tuple[Task, ...]:
        """The tasks that have not started, in order."""
        raise NotImplementedError

    @property
    def running(self) -> tuple[Task, ...]:
        """The tasks that have started and not finished."""
        raise NotImplementedError

    @property
    def busy(self) -> bool:
        """Whether any task waits or runs."""
        return bool(self.waiting or self.running)

    def why(self, task: Task) -> str | None:
        """Return why a waiting task did not start in the last tick, with figures; None if nothing held it back."""
        raise NotImplementedError

    def cancel(self, task: Task) -> bool:
        """Remove a waiting task or stop a running one; False if it has finished."""
        raise NotImplementedError

    def stop(self) -> None:
        """Cancel all tasks; running ones finish in later ticks."""
        for task in (*self.waiting, *self.running):
            self.cancel(task)

    def close(self) -> None:
        """Stop running tasks, cancel waiting ones, and release all resources. May be called twice."""
        raise NotImplementedError

    def run(self, timeout: float | None = None) -> Awaitable[None]:
        """Tick until no task waits or runs, or for ``timeout`` seconds. Sleeps between events.

        Inside ``async with``: ``await manager.run()``.
        """
        if self._loop_driver is not None:
            return self._loop_driver.run(timeout)
        self._run(timeout)
        return _Done()

    def _run(self, timeout: float | None) -> None:
        """Tick in the calling thread, as `run` does outside an event loop."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.tick():
            left = IDLE_WAIT_S if deadline is None else deadline - time.monotonic()
            if left <= 0:
                return
            self.wait(min(left, IDLE_WAIT_S))

    def _run_until(self, task: Task, timeout: float | None) -> None:
        """Tick until a task has finished. Raises ResultTimeout; RuntimeError in another thread."""
        if not self._owned_here:
            raise RuntimeError(
                "only the thread that owns the manager, the one that ticked it last, can wait for a task here: use "
                "task.future in other threads"
            )
        if self._loop_driver is not None and not task.done():
            raise RuntimeError(f"{task!r} has not ended, and a wait here would block its event loop: `await` the task")
        if not self._tick_until(task.done, timeout):
            raise ResultTimeout(f"{task!r} has not ended within {timeout} s")

    def _tick_until(
        self,
        ready: Callable[[], bool],
        timeout: float | None,
        *,
        others: Collection[BaseManager] = (),
        interval: float = IDLE_WAIT_S,
    ) -> bool:
        """Tick this manager and ``others`` until ``ready()``; return False after ``timeout`` seconds.

        ``interval`` bounds each wait, since only events of this manager end it.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not ready():
            left = interval if deadline is None else deadline - time.monotonic()
            if left <= 0:
                return False
            for manager in (self, *others):
                manager.tick()
            if not ready():  # The tick may have handled the last event: no other would end the wait.
                self.wait(min(left, interval))
        return True

    async def _wait_ended(self, task: Task) -> None:
        """Wait until a task has finished. Raises RuntimeError outside ``async with``."""
        if self._loop_driver is None:
            raise RuntimeError(f"{task!r} has not ended: await it inside `async with` its manager, or use result()")
        await self._loop_driver.wait_ended(task)

    def _begin_shutdown(self) -> None:
        """Stop all tasks, except those that outlive the manager."""
        self.stop()

    def _wake_loop(self) -> None:
        """Request a tick of the event loop, if there is one, after a change between two ticks."""
        if self._loop_driver is not None:
            self._loop_driver.schedule_tick()

    def _check_loop_turn(self) -> None:
        """Raise RuntimeError for a tick by the user's code while an event loop ticks the manager.

        Otherwise the calling thread owns the manager from now on.
        """
        if self._loop_driver is not None and not self._loop_driver.ticking:
            raise RuntimeError("inside `async with` the event loop ticks the manager: `await manager.run()` or a task")
        self._thread = threading.get_ident()

    def _detach_loop(self) -> None:
        """End the ticks by an event loop."""
        if self._loop_driver is not None:
            self._loop_driver.detach()

    async def __aenter__(self) -> Self:
        # Imported here: importing asyncio takes tens of milliseconds, and most programs do not use it.
        from doorman._scheduler.event_loop import LoopDriver

        LoopDriver(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._loop_driver is None:  # closed inside the block
            self.close()
            return
        await self._loop_driver.leave(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        if kind is None:
            self._report_waiting()
        self.close()

    def _report_waiting(self) -> None:
        """Log a warning if tasks wait that nothing will start any more."""
        waiting = () if self._outlived else self.waiting
        if waiting:
            logger.warning(
                "%d tasks, the first of them %r, were waiting when their manager was left, and have not run: "
                "call run() before the end of its block",
                len(waiting),
                waiting[0].name,
            )

    @property
    def _outlived(self) -> bool:
        """Whether its waiting tasks are finished already, or survive it."""
        return False

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # The interpreter may be about to exit, or `__init__` has raised.
            self._report_waiting()


class _Done:
    """An awaitable that is done."""

    def __await__(self) -> Generator[Any, None, None]:
        yield from ()
