"""Futures: a task's result as others wait for it: the standard library's own future, bound to the task."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION, Future
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeVar

from doorman.states import ENDED, State

if TYPE_CHECKING:
    from doorman.task import Keeper

__all__ = ["Awaited", "ManagedFuture", "Promising", "TaskFuture", "as_completed", "drive", "future_of", "wait"]

IDLE_WAIT_S: Final = 60.0
"""Longest sleep of one wait for a manager; every event wakes it."""
POLL_INTERVAL_S: Final = 0.02
"""Seconds after which a wait for the futures of several threads or managers looks at the others."""

_binding = threading.Lock()
"""Held while a future is bound to its task, or takes the one step of its life that only one thread may take."""


class ManagedFuture(Future[Any]):
    """A future that a manager settles. Waiting in the thread that owns the manager ticks it meanwhile."""

    @property
    def _manager(self) -> Keeper | None:
        """Whoever makes progress with it."""
        raise NotImplementedError

    def result(self, timeout: float | None = None) -> Any:
        """Return the value or raise the error. Raises TimeoutError after ``timeout`` seconds, CancelledError."""
        return super().result(self._progress(timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the error; None if there is a value. Raises TimeoutError, CancelledError."""
        return super().exception(self._progress(timeout))

    def _progress(self, timeout: float | None) -> float | None:
        """Make progress where that is the calling thread's; return the seconds that are left to wait."""
        if not self.done() and self._manager is not None and self._manager._owned_here:
            drive([self._manager], self.done, timeout)
            return 0.0
        return timeout


class Promising(Protocol):
    """A task, as its future and those who wait for it see it."""

    _future: TaskFuture | None

    @property
    def state(self) -> State:
        """Where it stands."""

    @property
    def _outcome(self) -> tuple[Any, BaseException | None]:
        """The value and the error that it ended with."""

    @property
    def owner(self) -> Keeper | None:
        """Its manager; None until it is added to one."""

    @property
    def future(self) -> TaskFuture:
        """Its future, always the same one."""

    def cancel(self) -> bool:
        """Drop it if it waits, stop it if it runs; False if it has ended."""


class TaskFuture(ManagedFuture):
    """The future of a `Task`. Its callbacks run in the thread that ticks the task's manager."""

    def __init__(self, task: Promising) -> None:
        super().__init__()
        self.task = task
        self._began = self._ended = False

    @property
    def _manager(self) -> Keeper | None:
        """The task's manager; None until the task is added to one."""
        return self.task.owner

    def cancel(self) -> bool:
        """Cancel the task, waiting or running, through its manager; False if it has ended or was never added.

        Safe from any thread: from another one than the manager's it is asked for, and the manager is woken. Unlike a
        pool's, a running task can be cancelled: this future is once its process has ended.
        """
        owner = self._manager
        if self.done() or owner is None:
            return self.cancelled()
        if owner._owned_here:
            return self.task.cancel()
        owner._call_soon(self.task.cancel)
        return True

    def update(self) -> None:
        """Come to where the task is. Called at each of its steps."""
        state = self.task.state
        with _binding:
            if self._ended or (state not in ENDED and (self._began or state is not State.RUNNING)):
                return
            if state is State.RUNNING:
                self._began = True
                self.set_running_or_notify_cancel()
                return
            self._ended = True
        self._settle(state)

    def _settle(self, state: State) -> None:
        value, error = self.task._outcome
        if state is State.CANCELLED:
            with self._condition:
                self._state = "PENDING"  # concurrent.futures knows no way from running to cancelled; managers do.
            super().cancel()
            self.set_running_or_notify_cancel()
        elif error is not None:
            self.set_exception(error)
        else:
            self.set_result(value)


def future_of(task: Promising) -> TaskFuture:
    """Return the one future of a task. Safe from any thread."""
    with _binding:
        if task._future is None:
            task._future = TaskFuture(task)
        future = task._future
    future.update()  # What the task did before nobody told it.
    return future


def drive(owners: Collection[Keeper], ready: Callable[[], bool], timeout: float | None) -> bool:
    """Tick managers of this thread's until ``ready()``; False after ``timeout`` seconds."""
    deadline = None if timeout is None else time.monotonic() + timeout
    first = next(iter(owners))
    while not ready():
        left = IDLE_WAIT_S if deadline is None else deadline - time.monotonic()
        if left <= 0:
            return False
        for owner in owners:
            owner.tick()
        if not ready():
            first.wait(min(left, IDLE_WAIT_S if len(owners) == 1 else POLL_INTERVAL_S))
    return True


Awaited = TypeVar("Awaited", bound="Promising | Future[Any]")


class Waited(NamedTuple):
    """What `wait` returns: what it was given, in two sets."""

    done: set[Any]
    not_done: set[Any]


def as_completed(tasks: Iterable[Awaited], timeout: float | None = None) -> Iterator[Awaited]:
    """Yield tasks, or futures of Doorman's, as they end; tick their manager meanwhile if it is this thread's.

    Each is yielded once. Raises TimeoutError if they have not all ended ``timeout`` seconds after the call.
    """
    gathering = _Gathering(tasks)
    return gathering.yielded(None if timeout is None else time.monotonic() + timeout)


def wait(tasks: Iterable[Awaited], timeout: float | None = None, return_when: str = ALL_COMPLETED) -> Waited:
    """Wait until tasks, or futures of Doorman's, have ended; tick their manager meanwhile if it is this thread's.

    ``return_when`` is one of those of `concurrent.futures.wait`, and so is what is returned. A timeout is no error.
    """
    if return_when not in (FIRST_COMPLETED, FIRST_EXCEPTION, ALL_COMPLETED):
        raise ValueError(f"return_when is FIRST_COMPLETED, FIRST_EXCEPTION or ALL_COMPLETED, not {return_when!r}")
    gathering = _Gathering(tasks)
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        while gathering.left and not (gathering.any_ended and _enough(gathering, return_when)):
            if gathering.next(deadline) is None:
                break
    finally:
        gathering.leave()
    done = {each for future, each in gathering.given.items() if future.done()}
    return Waited(done, set(gathering.given.values()) - done)


def _enough(gathering: _Gathering, return_when: str) -> bool:
    return return_when == FIRST_COMPLETED or (return_when == FIRST_EXCEPTION and gathering.any_failed)


class _Gathering:
    """Futures that are waited for, and the order in which they end."""

    def __init__(self, tasks: Iterable[Any]) -> None:
        self.given: dict[Future[Any], Any] = {each if isinstance(each, Future) else each.future: each for each in tasks}
        self.left = len(self.given)
        self.any_ended = self.any_failed = False
        self._ended: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        owners = [future._manager for future in self.given if isinstance(future, ManagedFuture) and not future.done()]
        self._owners = dict.fromkeys(owner for owner in owners if owner is not None and owner._owned_here)
        for future in self.given:
            future.add_done_callback(self._ended.put)

    def next(self, deadline: float | None) -> Future[Any] | None:
        """Wait for the next one to end; None at the deadline."""
        future = self._next(deadline)
        if future is not None:
            self.left -= 1
            self.any_ended = True
            self.any_failed |= not future.cancelled() and future.exception(0) is not None
        return future

    def yielded(self, deadline: float | None) -> Iterator[Any]:
        """Yield each as it ends, and keep none that was yielded. Raises TimeoutError."""
        total = self.left
        try:
            while self.left:
                future = self.next(deadline)
                if future is None:
                    raise TimeoutError(f"{self.left} (of {total}) futures unfinished")
                each = [self.given.pop(future)]
                del future
                yield each.pop()
        finally:
            self.leave()

    def leave(self) -> None:
        """Be told of no other end: who waits again and again would be told of each so many times."""
        for future in self.given:
            with future._condition:
                callbacks: list[Any] = future._done_callbacks  # type: ignore[attr-defined]  # no other way out
                if not future.done() and self._ended.put in callbacks:  # Else another thread may be calling them.
                    callbacks.remove(self._ended.put)

    def _next(self, deadline: float | None) -> Future[Any] | None:
        while True:
            left = IDLE_WAIT_S if deadline is None else deadline - time.monotonic()
            patience = max(0.0, min(left, IDLE_WAIT_S))
            if self._owners and self._ended.empty():
                drive(self._owners.keys(), lambda: not self._ended.empty(), patience)
                patience = 0.0
            try:
                return self._ended.get(timeout=patience)
            except queue.Empty:
                if left <= 0:
                    return None
