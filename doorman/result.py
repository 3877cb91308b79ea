"""Result: how a task ended, on its way from the child to whoever asked."""

from __future__ import annotations

import contextlib
import pickle
import traceback
from typing import Any

import cloudpickle
import msgspec

from doorman.errors import TaskFailed

__all__ = ["Outcome", "failed", "returned"]


class Outcome(msgspec.Struct, array_like=True, frozen=True):
    """What a task returned or raised, as bytes and texts. Unpickled only after its signature was checked."""

    value: bytes | None
    """The pickled return value; None if it raised."""
    error: bytes | None = None
    """The pickled exception; None if it returned, or if the exception cannot be pickled."""
    told: str = ""
    """The exception and its traceback, as the interpreter would print it."""

    def encode(self) -> bytes:
        """Return the bytes that travel."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Outcome:
        """Read what travelled. Raises msgspec.MsgspecError."""
        return msgspec.msgpack.decode(data, type=cls)

    def open(self) -> tuple[Any, BaseException | None]:
        """Return the value and None, or None and the exception to raise, whose cause tells the child's traceback."""
        if self.value is not None:
            try:
                return pickle.loads(self.value), None
            except Exception as unreadable:  # noqa: BLE001 - unpickling runs the user's code, which may raise anything
                told = "".join(traceback.format_exception(unreadable))
                return None, TaskFailed(f"the task returned, but its value cannot be unpickled here:\n{told}")
        failure = TaskFailed(f"the task raised in its process:\n\n{self.told}")
        error: Any = failure
        if self.error is not None:
            with contextlib.suppress(Exception):  # the same; the text still tells what happened
                error = pickle.loads(self.error)
        # A KeyboardInterrupt of the child's must not look like one of the manager's.
        if not isinstance(error, Exception):
            error = failure
        if error is not failure:
            error.__cause__ = failure
        return None, error


def returned(value: Any) -> Outcome:
    """Make the outcome of a task that returned; of one that failed if the value cannot be pickled."""
    try:
        return Outcome(cloudpickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL))
    except Exception as error:  # noqa: BLE001 - pickling runs code of the user's, which may raise anything
        reason = TypeError(f"the task returned a {type(value).__qualname__} that cannot be pickled: {error}")
        return failed(reason)


def failed(error: BaseException) -> Outcome:
    """Make the outcome of a task that raised."""
    told = "".join(traceback.format_exception(error))
    try:
        return Outcome(None, cloudpickle.dumps(error, protocol=pickle.HIGHEST_PROTOCOL), told)
    except Exception:  # noqa: BLE001 - the same; the text travels in any case
        return Outcome(None, None, told)
