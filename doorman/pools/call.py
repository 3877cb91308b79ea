"""Calls of a pool as futures, the queue of waiting calls, and the base of the pools."""

from __future__ import annotations

import contextlib
import logging
import pickle
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeAlias

from doorman._worker.outcome import TaskOutcome
from doorman._worker.pickling import pickle_call, pickle_initializer, script_of
from doorman.errors import PoolFailed, TaskCancelled, TaskNotPicklable
from doorman.futures import ManagedFuture
from doorman.task import check_listeners

if TYPE_CHECKING:
    from doorman.identity import Identity
    from doorman.launcher.main_module import Script
    from doorman.limits import Limits
    from doorman.manager import ProcessManager
    from doorman.progress import Progress
    from doorman.task import Task

logger = logging.getLogger("doorman")

OnCallProgress: TypeAlias = "Callable[[Call, Progress], object]"
"""Called with a call and its latest progress."""


class Call(ManagedFuture):
    """The result of `submit`: a `concurrent.futures.Future` that also names the process of the call.

    A waiting call can be cancelled from any thread. A call that was sent to a worker runs to its end.
    """

    # Class attributes, so that the defaults cost a new call neither time nor memory.
    worker: Identity | None = None
    """The process that the call was sent to; None while it waits."""
    progress: Progress | None = None
    """The latest report of ``current_task().progress(...)``."""
    name = ""
    """Name of the function."""
    _manager: ProcessManager | None = None
    number = 0
    """Identifies the call in messages to and from its worker; 0 until it is first sent."""
    data = b""
    """The pickled function and arguments."""

    def __init__(self, manager: ProcessManager) -> None:
        Future.__init__(self)
        self._manager = manager

    def pickle_call(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Pickle the call; if that fails, finish it with the error and return False."""
        self.name = str(getattr(fn, "__name__", type(fn).__name__))
        try:
            same_files = self._manager is None or self._manager._same_files
            self.data = pickle_call("the call", fn, args, kwargs, same_files=same_files)
        except (TaskNotPicklable, RuntimeError) as error:
            self.set_exception(error)
            return False
        return True

    @property
    def script(self) -> Script | None:
        """The script that its process must import."""
        return script_of(self.data)

    def result(self, timeout: float | None = None) -> Any:
        """Return the result or raise the error. Raises TimeoutError after ``timeout`` seconds, CancelledError."""
        if self._state == "FINISHED" and self._exception is None:
            return self._result  # No lock: FINISHED is the last state, and the result was set before it.
        return super().result(timeout)

    def start(self) -> bool:
        """Mark the call as running, so that it cannot be cancelled any more; False if it was cancelled."""
        # `set_running_or_notify_cancel`, inlined for the usual case because it is called for each call.
        condition = self._condition
        try:
            condition.acquire()
            waits = self._state == "PENDING"
            if waits:
                self._state = "RUNNING"
            condition.release()
        except BaseException:
            _release(condition)
            raise
        # RUNNING or FINISHED: an interrupt has left it in the queue twice.
        return waits or (self._state == "CANCELLED" and self.set_running_or_notify_cancel())

    def requeue(self) -> None:
        """Mark the call as waiting again, after its worker has returned it unstarted."""
        self.worker = None
        self._state = "PENDING"  # concurrent.futures has no such transition. No waiter distinguishes the two states.

    def set_progress(self, progress: Progress, listener: OnCallProgress | None) -> None:
        """Store a progress report and call the listener, if there is one."""
        self.progress = progress
        try:
            if listener is not None:
                listener(self, progress)
        except Exception as error:  # One listener must not stop the other calls.
            logger.error("the progress listener of %r raised", self, exc_info=error)

    def finish_pickled(self, data: bytes) -> None:
        """Finish the call with a pickled result."""
        try:
            value, error = pickle.loads(data), None
        except BaseException as interrupt:
            # Again, without Ctrl-C: an interrupt must not become the error of the call, nor the reverse.
            value, error = TaskOutcome(data).unpickle()
            if error is None and not isinstance(interrupt, Exception):
                raise
        self.finish(value, error)

    def finish(self, value: Any, error: BaseException | None) -> None:
        """Finish the call with a result or an error; after an interrupt, call the callbacks that are left."""
        if self._state not in ("PENDING", "RUNNING"):  # No lock, as in `result`.
            self._invoke_callbacks()
        elif error is not None:
            self.set_exception(error)
        else:
            self.set_result(value)
        self.data = b""


def _release(condition: Any) -> None:
    """Release the lock of a future that an interrupt has left to this thread."""
    with contextlib.suppress(RuntimeError):
        condition.release()


class PendingCalls:
    """The waiting calls of a pool, in order. One thread pops; any thread may `add` and `cancel_all`.

    There is no lock. `add` first queues its call and then reads the flags; `close` and `fail` first set a flag and then
    empty the queue. So if two threads race, at least one of them finishes the call.
    """

    def __init__(self) -> None:
        self._calls: deque[Call] = deque()
        self._closed = False
        self._error: Exception | None = None

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, call: Call) -> None:
        """Append a call. After `close` it is cancelled, after `fail` it gets the error."""
        self._calls.append(call)
        self._settle()

    def pop(self, most: int, into: list[Call]) -> None:
        """Move up to ``most`` calls to the end of a list, from where they cannot be cancelled. Skip cancelled ones.

        After an interrupt each call is in the queue or in the list, where the last one may not be started.
        """
        while most > 0:
            try:
                # One call of C code: between a popleft() and an append() an interrupt would lose the call.
                into.extend(map(deque.popleft, (self._calls,)))
            except IndexError:
                return  # Not tested before: another thread may empty the queue at any time.
            if into[-1].start():
                most -= 1
            else:
                del into[-1]

    def requeue(self, calls: Iterable[Call]) -> None:
        """Put calls that a worker has not started in front of all others. After `close` they are cancelled."""
        returned = [call for call in calls if not call.done()]
        for call in returned:
            call.requeue()
        self._calls.extendleft(reversed(returned))
        self._settle()

    def next_script(self) -> Script | None:
        """Return the script that the first waiting call needs."""
        with contextlib.suppress(IndexError):
            return self._calls[0].script
        return None

    def cancel_all(self) -> int:
        """Cancel the waiting calls; return how many were not cancelled before."""
        return self._end_all(None)

    def close(self) -> None:
        """Cancel the waiting calls, and those that are added or requeued from now on."""
        self._closed = True
        self.cancel_all()

    def fail(self, error: Exception) -> None:
        """Finish the waiting calls with an error, and those that are added from now on."""
        self._error = error
        self._end_all(error)

    def _settle(self) -> None:
        if self._error is not None:
            self.fail(self._error)
        elif self._closed:
            self.cancel_all()

    def _end_all(self, error: Exception | None) -> int:
        count, taken = 0, list[Call]()
        try:
            while True:  # As in `pop`; IndexError ends the loop.
                taken.extend(map(deque.popleft, (self._calls,)))
                count += not taken[-1].cancelled() and (error is not None or taken[-1].cancel())
                if (taken[-1].start() or taken[-1].running()) and error is not None:  # `start` wakes waits.
                    taken[-1].set_exception(error)
                del taken[-1]
        except IndexError:
            return count
        except BaseException:
            self._calls.extendleft(taken)
            raise


class CallPool(ABC):
    """Base of the pools: up to ``size`` processes of a manager, to which a subclass assigns the submitted calls.

    `submit` and `cancel_waiting` are safe from any thread. The other methods are for the thread that owns the manager.
    """

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
        check_listeners(on_progress=on_progress)
        self.manager = manager
        self.size = size
        self.failed: PoolFailed | None = None
        """The error that `submit` raises; None while the pool accepts calls."""
        self._initializer = pickle_initializer(initializer, tuple(initargs), same_files=manager._same_files)
        self._script = script_of(self._initializer)
        self._limits, self._on_progress = limits, on_progress
        self._waiting = PendingCalls()
        self._dispatch_scheduled = self._closed = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Call:
        """Call ``fn(*args, **kwargs)`` in a process and return the future of its result. Safe from any thread.

        The future raises the function's exception with `TaskFailed`, which holds the traceback of the process, as its
        cause; TaskNotPicklable if the call cannot be pickled. Raises PoolFailed; ValueError once the pool or its
        manager is closed.
        """
        if self.failed is not None:
            raise self.failed
        if self._closed or self.manager.closed:
            raise ValueError("this pool is closed, or its manager is")
        call = Call(self.manager)
        try:
            if call.pickle_call(fn, args, kwargs):
                self._waiting.add(call)
                self._schedule_dispatch()
        except BaseException:  # An interrupt, such as Ctrl-C: the caller gets no future.
            call.cancel()
            self._dispatch_scheduled = False
            self._schedule_dispatch()
            raise
        return call

    def cancel_waiting(self) -> int:
        """Cancel the calls that were not sent to a process yet; return their number. Safe from any thread."""
        return self._waiting.cancel_all()

    @property
    def busy(self) -> bool:
        """Whether any call waits or runs."""
        return self._unfinished > 0

    def stop_workers(self, *, kill: bool = False) -> None:
        """Stop the processes and their calls: by SIGTERM and, after the manager's grace, SIGKILL; or by SIGKILL now."""
        for task in self._tasks():
            task.stop(kill=kill)

    def close(self) -> None:
        """Cancel waiting calls and stop the processes. May be called twice."""
        self._closed = True
        self._waiting.close()
        self.stop_workers()

    @property
    def _unfinished(self) -> int:
        """Number of calls that wait or run."""
        return len(self._waiting) + self._running_calls()

    @abstractmethod
    def _running_calls(self) -> int:
        """Return the number of calls that processes have."""

    @abstractmethod
    def _tasks(self) -> list[Task]:
        """Return the tasks that are its processes."""

    @abstractmethod
    def _assign_calls(self) -> None:
        """Send waiting calls to processes, and start processes as needed."""

    def _schedule_dispatch(self) -> None:
        """Schedule one `_dispatch` in the next tick, for any number of calls."""
        # The flag is read after the call was queued, and cleared before the queue is read, so no call is missed. The
        # usual submit does not wake the manager's thread.
        if not self._dispatch_scheduled:
            self._dispatch_scheduled = True
            self.manager._call_soon(self._dispatch)

    def _dispatch(self) -> None:
        # After an interrupt within, the manager's next tick calls this again.
        self._dispatch_scheduled = False
        if self.manager.closed:
            self._fail_waiting()
        else:
            self._assign_calls()

    def _on_process_done(self) -> None:
        """Assign or fail the waiting calls after the end of a process."""
        if self.manager.closed:
            self._fail_waiting()
        elif self._waiting:
            self._schedule_dispatch()

    def _give_up(self, failure: PoolFailed, cause: BaseException | None) -> None:
        """Fail the waiting calls and every later `submit`."""
        failure.__cause__ = cause
        self.failed = failure
        self._waiting.fail(failure)

    def _fail_waiting(self) -> None:
        """Fail the waiting calls, because the manager is closed."""
        self._closed = True
        self._waiting.fail(TaskCancelled("the call waited when its manager was closed"))
