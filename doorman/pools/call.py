"""Backlog: the calls that no worker has yet, in their order."""

from __future__ import annotations

import logging
import pickle
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeAlias

from doorman._worker.outcome import Outcome
from doorman._worker.pickling import not_picklable, pickle_value
from doorman.errors import TaskFailed
from doorman.futures import ManagedFuture

if TYPE_CHECKING:
    from doorman._scheduler.base_manager import BaseManager
    from doorman.identity import Identity
    from doorman.progress import Progress

__all__ = ["Call", "OnCallProgress", "PendingCalls"]


logger = logging.getLogger("doorman")

OnCallProgress: TypeAlias = "Callable[[Call, Progress], object]"
"""Called with a call and how far it has come."""


class Call(ManagedFuture):
    """What `submit` returns: a `concurrent.futures.Future` that also knows who ran the call.

    It can be cancelled while it waits, from any thread; once a worker has it, it runs to its end.
    """

    worker: Identity | None = None
    """The process that the call was given to; None until then."""

    progress: Progress | None = None
    """How far it has come, as it last reported with ``current_task().progress(...)``; None before the first."""

    name = ""
    """What its function is called."""
    number = 0
    """Names it between the manager and its worker; 0 until it is given to one."""
    data = b""
    """The function and its arguments."""

    def __init__(self, owner: BaseManager | None = None) -> None:
        Future.__init__(self)
        self._owner = owner

    @property
    def _manager(self) -> BaseManager | None:
        """The manager whose worker runs it."""
        return self._owner

    def pickle_call(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Keep what is to be called; False if it cannot travel, which the future then tells."""
        self.name = str(getattr(fn, "__name__", type(fn).__name__))
        try:
            self.data = pickle_value((fn, args, kwargs))
        except Exception as error:  # noqa: BLE001 - pickling runs code of the user's, which may raise anything
            name = getattr(fn, "__qualname__", type(fn).__qualname__)
            self.set_exception(not_picklable(f"a call of {name}", error, fn, args, kwargs))
            return False
        return True

    def result(self, timeout: float | None = None) -> Any:
        """Return the value or raise the error. Raises TimeoutError after ``timeout`` seconds, CancelledError."""
        if self._state == "FINISHED" and self._exception is None:
            return self._result  # Without a lock: it is the last state, and both were there before it.
        return super().result(timeout)

    def start(self) -> bool:
        """A worker is given it: from now on it cannot be cancelled; False if it was before."""
        condition = self._condition
        condition.acquire()
        waits = self._state == "PENDING"
        if waits:
            self._state = "RUNNING"
        condition.release()
        return waits or self.set_running_or_notify_cancel()

    def requeue(self) -> None:
        """A worker that was given it gives it back unbegun: it may be cancelled again."""
        self.worker = None
        with self._condition:
            self._state = "PENDING"  # concurrent.futures knows no way back; nobody has seen more than "running".

    def set_progress(self, progress: Progress, listener: OnCallProgress | None) -> None:
        """Keep how far it has come, and tell whoever listens."""
        self.progress = progress
        try:
            if listener is not None:
                listener(self, progress)
        except Exception as error:  # A listener of one call's must not stop the others.
            logger.error("the listener of the progress of %r raised", self, exc_info=error)

    def set_pickled_result(self, data: bytes) -> None:
        """Settle it with a pickled value."""
        self.data = b""
        try:
            value = pickle.loads(data)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - unpickling runs the user's code
            self.set_exception(_unreadable("value", error))
        else:
            self.set_result(value)

    def set_pickled_error(self, data: bytes) -> None:
        """Settle it with an encoded `Outcome` that failed."""
        self.data = b""
        try:
            error = Outcome.decode(data).unpickle()[1]
        except SystemExit as leaving:
            error = _unreadable("exception", leaving)
        self.set_exception(error)


def _unreadable(what: str, error: BaseException) -> TaskFailed:
    told = "".join(traceback.format_exception(error))
    return TaskFailed(f"the call ended, but its {what} cannot be unpickled here:\n{told}")


class PendingCalls:
    """What waits in a pool. `add` and `cancel` are safe from any thread, beside the one that takes."""

    def __init__(self) -> None:
        self._calls: deque[Call] = deque()
        self._closed = False
        self._error: Exception | None = None

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, call: Call) -> None:
        """Let a call wait behind all others; or cancel it, after `close`, or settle it, after `fail`."""
        self._calls.append(call)
        self._settle()

    def pop(self, most: int) -> list[Call]:
        """Return up to ``most`` calls that nobody has cancelled; from now on they cannot be."""
        taken: list[Call] = []
        while len(taken) < most and (call := self._next()) is not None:
            if call.start():
                taken.append(call)
        return taken

    def requeue(self, calls: Iterable[Call]) -> None:
        """Let calls that were not begun wait again, before all others; or cancel them, after `close`."""
        back = list(calls)
        for call in back:
            call.requeue()
        self._calls.extendleft(reversed(back))
        self._settle()

    def cancel_all(self) -> int:
        """Cancel what waits; return how many were not cancelled before."""
        cancelled = 0
        while (call := self._next()) is not None:
            cancelled += not call.cancelled() and call.cancel()
            call.start()  # It cannot; but those who wait for several futures are told only now.
        return cancelled

    def close(self) -> None:
        """Cancel what waits, and from now on what is put back."""
        self._closed = True
        self.cancel_all()

    def fail(self, error: Exception) -> None:
        """Settle what waits with an error, and from now on what comes."""
        self._error = error
        while (call := self._next()) is not None:
            if call.set_running_or_notify_cancel():
                call.set_exception(error)

    def _settle(self) -> None:
        """Looked at after a call was put there: another thread may have closed meanwhile, and looked before."""
        if self._error is not None:
            self.fail(self._error)
        elif self._closed:
            self.cancel_all()

    def _next(self) -> Call | None:
        try:
            return self._calls.popleft()
        except IndexError:
            return None  # There is none, or another thread has just cancelled them all.
