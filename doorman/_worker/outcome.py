"""Result: how a task ended, on its way from the child to whoever asked."""

from __future__ import annotations

import contextlib
import pickle
import signal
import threading
import traceback
from collections.abc import Iterator
from typing import Any

import cloudpickle
import msgspec

from doorman.errors import TaskFailed

__all__ = ["Outcome", "failed", "label", "returned"]


class Outcome(msgspec.Struct, array_like=True, frozen=True):
    """What a task returned or raised, as bytes and texts. Unpickled only after its signature was checked."""

    value: bytes | None
    """The pickled return value; None if it raised."""
    error: bytes | None = None
    """The pickled exception; None if it returned, or if the exception cannot be pickled."""
    traceback: str = ""
    """The exception and its traceback, as the interpreter would print it."""

    def encode(self) -> bytes:
        """Return the bytes that travel."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Outcome:
        """Read what travelled. Raises msgspec.MsgspecError."""
        return msgspec.msgpack.decode(data, type=cls)

    def unpickle(self) -> tuple[Any, BaseException | None]:
        """Return the value and None, or None and the exception to raise, whose cause tells the child's traceback."""
        if self.value is not None:
            value, unreadable = _unpickled(self.value)
            if unreadable is None:
                return value, None
            told = "".join(traceback.format_exception(unreadable))
            return None, TaskFailed(f"the task returned, but its value cannot be unpickled here:\n{told}")
        failure = TaskFailed(f"the task raised in its process:\n\n{self.traceback}")
        error, _ = (None, None) if self.error is None else _unpickled(self.error)
        # A KeyboardInterrupt of the child's must not look like one of the manager's.
        if not isinstance(error, Exception):
            return None, failure
        # Not by assignment: an exception may be a frozen dataclass.
        BaseException.__dict__["__cause__"].__set__(error, failure)
        return None, error


def _unpickled(data: bytes) -> tuple[Any, BaseException | None]:
    """Return what was pickled and None, or None and what that raised."""
    with _ctrl_c_later():
        try:
            return pickle.loads(data), None
        except BaseException as error:  # noqa: BLE001 - the user's code runs here, and may ask to exit; Ctrl-C waits
            return None, error


@contextlib.contextmanager
def _ctrl_c_later() -> Iterator[None]:
    """Let a Ctrl-C of the user's wait until the end of the block, so that what looks like one there is none."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    pressed: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if pressed:
            signal.raise_signal(signal.SIGINT)


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


def label(number: int, parts: int) -> bytes:
    """Return what is signed along with a part of an outcome's bytes, so that parts cannot be exchanged."""
    return number.to_bytes(4, "big") + parts.to_bytes(4, "big")
