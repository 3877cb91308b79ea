"""Futures of tasks and of pool calls, and the functions that wait for several of them."""

from __future__ import annotations

import itertools
import logging
import operator
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION, Future
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from doorman.states import ENDED, State
from remit.transport import next_item

if TYPE_CHECKING:
    from doorman._scheduler.base_manager import BaseManager
    from doorman.task import Task

__all__ = ["TaskFuture", "as_completed", "wait"]


logger = logging.getLogger("doorman")

IDLE_WAIT_S: Final = 60.0  # every event of a manager wakes the wait
POLL_INTERVAL_S: Final = 0.02  # for futures of other managers and executors, which cannot wake the wait

# Held while a future is bound to its task or follows the task's state: any thread can request a future while the
# manager's thread changes the state.
# Re-entrant: a signal handler may request a future at any line.
_binding = threading.RLock()


class ManagedFuture(Future[Any]):
    """A future that a manager settles. A wait in the thread that owns the manager ticks it."""

    @property
    def _manager(self) -> BaseManager | None:
        raise NotImplementedError

    def result(self, timeout: float | None = None) -> Any:
        """Return the result or raise the error. Raises TimeoutError after ``timeout`` seconds, CancelledError."""
        return super().result(self._tick_until_done(timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the error; None if there is a result. Raises TimeoutError, CancelledError."""
        return super().exception(self._tick_until_done(timeout))

    def _invoke_callbacks(self) -> None:
        """Call the callbacks, also those behind one that exits or that an interrupt ends, and remove them."""
        interrupt = None
        callbacks: list[Any] = self._done_callbacks  # type: ignore[attr-defined]
        while callbacks:
            try:
                # One call of C code: an exception of a signal handler occurs before the removal or within the callback.
                next(map(operator.call, itertools.starmap(callbacks.pop, ((0,),)), (self,)))
            except Exception as error:  # One callback must not stop the others.
                logger.error("a callback of %r raised", self, exc_info=error)
            except BaseException as error:  # noqa: BLE001 - raised below
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def _tick_until_done(self, timeout: float | None) -> float | None:
        """Tick the manager if this thread owns it; return the seconds that are left to wait."""
        manager = self._manager
        if not self.done() and manager is not None and manager._owned_here:
            manager._tick_until(self.done, timeout)
            return 0.0
        return timeout


class TaskFuture(ManagedFuture):
    """The future of a `Task`. Its callbacks run in the thread that ticks the task's manager."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task
        self._running = self._settled = False

    @property
    def _manager(self) -> BaseManager | None:
        return self.task._manager

    def cancel(self) -> bool:
        """Cancel the task, waiting or running, through its manager; False if it has finished or was never added.

        Safe from any thread. A thread other than the manager's only requests it: the future is cancelled once the task
        has finished. Unlike the futures of `concurrent.futures`, a running one can be cancelled.
        """
        manager = self._manager
        if self.done() or manager is None:
            return self.cancelled()
        if manager._owned_here:
            return self.task.cancel()
        manager._call_soon(self.task.cancel)
        return True

    def _update(self) -> None:
        """Follow the state of the task. Called after each change."""
        try:
            state = self.task.state
            with _binding:
                if self._settled or (state not in ENDED and (self._running or state is not State.RUNNING)):
                    return
                if state is State.RUNNING:
                    self._running = True
                    self.set_running_or_notify_cancel()
                    return
                self._settled = True
            # Without the lock: callbacks run here, and may request another future.
            self._settle(state)
        except BaseException:
            _release_binding()
            self._settled = self.done()  # If not, the manager calls this again.
            raise

    def _settle(self, state: State) -> None:
        value, error = self.task._outcome
        if state is State.CANCELLED:
            self._state = "PENDING"  # concurrent.futures cancels no running future; a manager does.
            super().cancel()
            self.set_running_or_notify_cancel()
        elif error is not None:
            self.set_exception(error)
        else:
            self.set_result(value)


def future_of(task: Task) -> TaskFuture:
    """Return the one future of a task. Safe from any thread."""
    try:
        with _binding:
            if task._future is None:
                task._future = TaskFuture(task)
            future = task._future
    except BaseException:
        _release_binding()
        raise
    future._update()  # The task may have changed its state before it had a future.
    return future


def _release_binding() -> None:
    """Release the lock if an interrupt has left it to this thread, as at the line that ends a `with` block."""
    while _binding._is_owned():  # type: ignore[attr-defined]
        _binding.release()


Awaited = TypeVar("Awaited", bound="Task | Future[Any]")


class Waited(NamedTuple):
    """The result of `wait`: the tasks or futures that were passed, in two sets."""

    done: set[Any]
    not_done: set[Any]


def as_completed(tasks: Iterable[Awaited], timeout: float | None = None) -> Iterator[Awaited]:
    """Yield each task, or each of Doorman's futures, when it finishes. Tick the manager if this thread owns it.

    Raises TimeoutError if not all have finished ``timeout`` seconds after the call.
    """
    return _completed(_Waiter(tasks), None if timeout is None else time.monotonic() + timeout)


def _completed(waiter: _Waiter, deadline: float | None) -> Iterator[Any]:
    total = waiter.left
    try:
        while waiter.left:
            future = waiter.next(deadline)
            if future is None:
                raise TimeoutError(f"{waiter.left} (of {total}) futures unfinished")
            given = [waiter.given.pop(future)]
            del future
            yield given.pop()  # While the caller works, no reference here keeps the result alive.
    finally:
        waiter.close()


def wait(tasks: Iterable[Awaited], timeout: float | None = None, return_when: str = ALL_COMPLETED) -> Waited:
    """Wait for tasks, or Doorman's futures; tick their manager if this thread owns it.

    ``return_when`` and the result are those of `concurrent.futures.wait`. A timeout is no error.
    """
    if return_when not in (FIRST_COMPLETED, FIRST_EXCEPTION, ALL_COMPLETED):
        raise ValueError(f"return_when is FIRST_COMPLETED, FIRST_EXCEPTION or ALL_COMPLETED, not {return_when!r}")
    waiter = _Waiter(tasks)
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        while waiter.left and (future := waiter.next(deadline)) is not None:
            failed = not future.cancelled() and future.exception(0) is not None
            if return_when == FIRST_COMPLETED or (return_when == FIRST_EXCEPTION and failed):
                break
    finally:
        waiter.close()
    done = {given for future, given in waiter.given.items() if future.done()}
    return Waited(done, set(waiter.given.values()) - done)


class _Waiter:
    """Collects futures in the order in which they finish."""

    def __init__(self, tasks: Iterable[Any]) -> None:
        self.given: dict[Future[Any], Any] = {each if isinstance(each, Future) else each.future: each for each in tasks}
        self.left = len(self.given)
        # Filled in the threads that settle the futures, read in the thread that waits.
        self._finished: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        unfinished = [future for future in self.given if not future.done()]
        managers = [future._manager for future in unfinished if isinstance(future, ManagedFuture)]
        self._managers = dict.fromkeys(manager for manager in managers if manager is not None and manager._owned_here)
        alone = len(self._managers) == 1 and all(manager in self._managers for manager in managers)
        self._interval = IDLE_WAIT_S if alone and len(managers) == len(unfinished) else POLL_INTERVAL_S
        for future in self.given:
            future.add_done_callback(self._finished.put)

    def next(self, deadline: float | None) -> Future[Any] | None:
        """Wait until another future has finished and return it; None at the deadline."""
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if self._managers:
                first, *others = self._managers
                first._tick_until(lambda: not self._finished.empty(), left, others=others, interval=self._interval)
                left = 0.0
            try:
                future = next_item(self._finished, IDLE_WAIT_S if left is None else min(left, IDLE_WAIT_S))
            except queue.Empty:
                if deadline is not None and time.monotonic() >= deadline:
                    return None
            else:
                self.left -= 1
                return future

    def close(self) -> None:
        """Remove the callbacks, which repeated waits for the same futures would pile up."""
        for future in self.given:
            with future._condition:
                # The standard library has no method for this. Once a future is done, another thread may be iterating.
                callbacks: list[Any] = future._done_callbacks  # type: ignore[attr-defined]
                if not future.done() and self._finished.put in callbacks:
                    callbacks.remove(self._finished.put)
