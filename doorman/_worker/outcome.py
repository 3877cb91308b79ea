"""Encoding of a call's outcome, its value or its exception, for the way from the worker process to the manager."""

from __future__ import annotations

import contextlib
import inspect
import pickle
import signal
import threading
import traceback
from collections.abc import Iterator
from typing import Any

import msgspec

from doorman._worker.pickling import pickle_value
from doorman.errors import TaskFailed
from remit.codec import printable


class TaskOutcome(msgspec.Struct, array_like=True, frozen=True):
    """The value or the exception of a task. Its signature is checked before anything in it is unpickled."""

    value: bytes | None
    """The pickled return value; None if the task raised."""
    error: bytes | None = None
    """The pickled exception; None if the task returned, or if the exception cannot be pickled."""
    traceback: str = ""
    """The exception and its traceback, as the interpreter prints them."""

    def encode(self) -> bytes:
        """Return the outcome as bytes."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> TaskOutcome:
        """Return the encoded outcome. Raises msgspec.MsgspecError."""
        return msgspec.msgpack.decode(data, type=cls)

    def unpickle(self) -> tuple[Any, BaseException | None]:
        """Return the value and None, or None and the exception. Its cause has the traceback of the task's process."""
        if self.value is not None:
            value, unreadable = _unpickled(self.value)
            if unreadable is None:
                return value, None
            text = "".join(traceback.format_exception(unreadable))
            return None, TaskFailed(f"the call returned, but its value cannot be unpickled here:\n{text}")
        failure = TaskFailed(f"the task raised in its process:\n\n{self.traceback}")
        error, _ = (None, None) if self.error is None else _unpickled(self.error)
        # A KeyboardInterrupt of the worker process must not look like one of the manager.
        if not isinstance(error, Exception):
            return None, failure
        # Not by assignment, because an exception may be a frozen dataclass.
        BaseException.__dict__["__cause__"].__set__(error, failure)
        return None, error


def returned(value: Any) -> TaskOutcome:
    """Return the outcome of a task that returned a value. If that cannot be pickled, the task failed."""
    try:
        return TaskOutcome(pickle_value(value))
    except BaseException as error:  # noqa: BLE001 - pickling runs the user's code, which may even exit
        return failed(not_returnable(value, error))


def not_returnable(value: Any, error: BaseException) -> TypeError:
    """Return the error for a result that cannot be pickled."""
    hint = ""
    if inspect.iscoroutine(value):
        hint = "; call a plain function, such as one that calls asyncio.run(...)"
        value.close()  # Otherwise the interpreter warns that it was never awaited.
    reason = TypeError(f"the call returned a {type(value).__qualname__} that cannot be pickled: {error}{hint}")
    reason.__cause__ = error
    return reason


def failed(error: BaseException) -> TaskOutcome:
    """Return the outcome of a task that raised."""
    text = type(error).__qualname__
    with contextlib.suppress(Exception):  # A property of the user's class may raise anything.
        text = printable("".join(traceback.format_exception(error)))
    try:
        return TaskOutcome(None, pickle_value(error), text)
    except BaseException:  # noqa: BLE001 - as above; the text travels in any case
        return TaskOutcome(None, None, text)


def _unpickled(data: bytes) -> tuple[Any, BaseException | None]:
    """Return the unpickled object and None, or None and the exception that unpickling raised."""
    with _sigint_deferred():
        try:
            return pickle.loads(data), None
        except BaseException as error:  # noqa: BLE001 - unpickling runs the user's code, which may even exit
            return None, error


@contextlib.contextmanager
def _sigint_deferred() -> Iterator[None]:
    """Defer Ctrl-C to the end of the block: a KeyboardInterrupt within it then comes from the unpickled code."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    received: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _frame: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if received:
            signal.raise_signal(signal.SIGINT)
