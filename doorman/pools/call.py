"""Call: one call of a function that a pool's worker runs: pickled when it is asked for, its future the result."""

from __future__ import annotations

import logging
import pickle
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeAlias

from doorman.errors import TaskFailed
from doorman.futures import Driven
from doorman.result import Outcome
from doorman.travel import pickled, untransportable

if TYPE_CHECKING:
    from doorman.identity import Identity
    from doorman.owner import Owner
    from doorman.progress import Progress

__all__ = ["Call", "OnCallProgress"]

logger = logging.getLogger("doorman")

OnCallProgress: TypeAlias = "Callable[[Call, Progress], object]"
"""Called with a call and how far it has come."""


class Call(Driven):
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

    def __init__(self, owner: Owner | None = None) -> None:
        Future.__init__(self)
        self._owner = owner

    @property
    def owner(self) -> Owner | None:
        """The manager whose worker runs it."""
        return self._owner

    def take(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Keep what is to be called; False if it cannot travel, which the future then tells."""
        self.name = str(getattr(fn, "__name__", type(fn).__name__))
        try:
            self.data = pickled((fn, args, kwargs))
        except Exception as error:  # noqa: BLE001 - pickling runs code of the user's, which may raise anything
            name = getattr(fn, "__qualname__", type(fn).__qualname__)
            self.set_exception(untransportable(f"a call of {name}", error, fn, args, kwargs))
            return False
        return True

    def result(self, timeout: float | None = None) -> Any:
        """Return the value or raise the error. Raises TimeoutError after ``timeout`` seconds, CancelledError."""
        if self._state == "FINISHED" and self._exception is None:
            return self._result  # Without a lock: it is the last state, and both were there before it.
        return super().result(timeout)

    def begin(self) -> bool:
        """A worker is given it: from now on it cannot be cancelled; False if it was before."""
        condition = self._condition
        condition.acquire()
        waits = self._state == "PENDING"
        if waits:
            self._state = "RUNNING"
        condition.release()
        return waits or self.set_running_or_notify_cancel()

    def wait_again(self) -> None:
        """A worker that was given it gives it back unbegun: it may be cancelled again."""
        self.worker = None
        with self._condition:
            self._state = "PENDING"  # concurrent.futures knows no way back; nobody has seen more than "running".

    def came(self, progress: Progress, listener: OnCallProgress | None) -> None:
        """Keep how far it has come, and tell whoever listens."""
        self.progress = progress
        try:
            if listener is not None:
                listener(self, progress)
        except Exception as error:  # A listener of one call's must not stop the others.
            logger.error("the listener of the progress of %r raised", self, exc_info=error)

    def returned(self, data: bytes) -> None:
        """Settle it with a pickled value."""
        self.data = b""
        try:
            value = pickle.loads(data)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - unpickling runs the user's code
            self.set_exception(_unreadable("value", error))
        else:
            self.set_result(value)

    def raised(self, data: bytes) -> None:
        """Settle it with an encoded `Outcome` that failed."""
        self.data = b""
        try:
            error = Outcome.decode(data).open()[1]
        except SystemExit as leaving:
            error = _unreadable("exception", leaving)
        self.set_exception(error)


def _unreadable(what: str, error: BaseException) -> TaskFailed:
    told = "".join(traceback.format_exception(error))
    return TaskFailed(f"the call ended, but its {what} cannot be unpickled here:\n{told}")
