"""Fresh: calls as futures, each in a proven process of its own that serves no other."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from doorman._worker.pickling import pickle_value
from doorman.errors import PoolFailed
from doorman.pools.call import Call, OnCallProgress, PendingCalls
from doorman.task import Task

if TYPE_CHECKING:
    from doorman.limits import Limits
    from doorman.manager import ProcessManager

__all__ = ["ProcessPerCall"]


class ProcessPerCall:
    """Up to ``size`` processes of a manager's at a time, one for each call. The surface of a `Crew`."""

    def __init__(
        self,
        manager: ProcessManager,
        size: int,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: Sequence[Any] = (),
        limits: Limits | None = None,
        on_progress: OnCallProgress | None = None,
    ) -> None:
        self.manager = manager
        self.size = size
        self.failed: PoolFailed | None = None
        self._initializer = b"" if initializer is None else pickle_value((initializer, tuple(initargs)))
        self._limits, self._on_progress = limits, on_progress
        self._waiting = PendingCalls()
        self._running: dict[Task, Call] = {}
        self._dispatch_scheduled = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Call:
        """Call ``fn(*args, **kwargs)`` in a process of its own; return the future of its result. From any thread."""
        if self.failed is not None:
            raise self.failed
        call = Call(self.manager)
        if call.pickle_call(fn, args, kwargs):
            self._waiting.add(call)
            self._schedule_dispatch()
        return call

    def cancel_waiting(self) -> int:
        """Cancel the calls that have no process yet; return how many. From any thread."""
        return self._waiting.cancel_all()

    def _cancel_rest(self) -> None:
        """The same, where nothing more is submitted."""
        self.cancel_waiting()

    @property
    def busy(self) -> bool:
        """Whether any call waits or runs."""
        return bool(self._waiting or self._running)

    @property
    def _unfinished(self) -> int:
        """How many calls wait or run."""
        return len(self._waiting) + len(self._running)

    def stop_workers(self, *, kill: bool = False) -> None:
        """Stop the processes that run now, by SIGTERM and after the manager's grace SIGKILL, or that at once."""
        for task in tuple(self._running):
            task.stop(kill=kill)

    def close(self) -> None:
        """Cancel what waits and stop what runs."""
        self.cancel_waiting()
        self.stop_workers()

    def _give_up(self, failure: PoolFailed, cause: BaseException | None) -> None:
        """Run nothing more: what waits fails, and so does every later `submit`."""
        failure.__cause__ = cause
        self.failed = failure
        self._waiting.fail(failure)

    def _schedule_dispatch(self) -> None:
        if not self._dispatch_scheduled:
            self._dispatch_scheduled = True
            self.manager._call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._dispatch_scheduled = False
        if self.manager.closed:
            return
        while len(self._running) < self.size and (taken := self._waiting.pop(1)):
            call = taken[0]
            task = Task(
                _run,
                self._initializer,
                call.data,
                name=call.name,
                handler=call.name,
                limits=self._limits,
                on_progress=lambda task, progress: self._running[task].set_progress(progress, self._on_progress),
            )
            self._running[task] = call
            try:
                self.manager.add_task(task)
            except BaseException as error:
                del self._running[task]
                call.set_exception(error)
                raise
            task.future.add_done_callback(self._on_task_done)

    def _on_task_done(self, future: Future[Any]) -> None:
        task = future.task  # type: ignore[attr-defined]
        call = self._running.pop(task)
        call.worker = task.identity
        value, error = task._outcome
        if error is not None:
            call.set_exception(error)
        else:
            call.set_result(value)
        if self._waiting:
            self._schedule_dispatch()


def _run(initializer: bytes, data: bytes) -> Any:
    """Task: one call."""
    if initializer:
        function, initargs = pickle.loads(initializer)
        function(*initargs)
    fn, args, kwargs = pickle.loads(data)
    return fn(*args, **kwargs)
