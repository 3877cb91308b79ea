"""Progress: how far a task says that it has come, from its process to whoever watches."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

if TYPE_CHECKING:
    from doorman.identity import Credential

__all__ = ["Progress", "ProgressReporter", "make_progress", "packed", "read", "signed", "unpacked"]

REPORT_INTERVAL_S: Final = 0.05
"""Seconds between two reports of a task; of what it says in between only the last travels."""
NOTE: Final = 1000
"""Characters of a note that travel."""
_PURPOSE: Final = b"doorman.progress"
"""Signed along with each report, so that nothing else that a process signs is taken for one."""
_LARGEST: Final = 1 << 63

_Report: TypeAlias = tuple[int, int | float, int | float | None, str]
_read_report: Final = msgspec.msgpack.Decoder(_Report).decode


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a task has come, as it last said."""

    done: float
    total: float | None = None
    """What ``done`` will be at the end; None if the task does not know."""
    note: str = ""
    at: float = 0.0
    """When its manager heard of it: seconds since the epoch, as of `time.time`."""

    @property
    def fraction(self) -> float | None:
        """From 0 to 1; None without a total."""
        return None if not self.total else max(0.0, min(1.0, self.done / self.total))


class ProgressReporter:
    """The child's side: lets a report through at once, and of those that follow within `INTERVAL` the last one.

    Safe from any thread.
    """

    def __init__(self, send: Callable[[Progress], None]) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._pending: Progress | None = None
        self._timer: threading.Timer | None = None
        self._next = 0.0

    def report(self, progress: Progress) -> None:
        """Let it travel now, or soon if nothing newer comes."""
        with self._lock:
            self._pending = progress
            self._keep_time()

    def flush(self) -> None:
        """Let what waits travel now."""
        with self._lock:
            self._let_go()

    def _timed(self) -> None:
        with self._lock:
            self._timer = None
            self._keep_time()

    def _keep_time(self) -> None:
        """Let it go if it is time, else see to it that somebody comes back then."""
        wait = self._next - time.monotonic()
        if wait <= 0:
            self._let_go()
        elif self._timer is None and self._pending is not None:
            self._timer = threading.Timer(wait, self._timed)
            self._timer.daemon = True
            self._timer.start()

    def _let_go(self) -> None:
        progress, self._pending = self._pending, None
        if progress is not None:
            self._next = time.monotonic() + REPORT_INTERVAL_S
            self._send(progress)


def make_progress(done: float, total: float | None, note: str) -> Progress:
    """Return what can travel. Raises TypeError for what is no number."""
    shown = str(note)[:NOTE].encode(errors="replace").decode()
    return Progress(_number(done, "done"), None if total is None else _number(total, "total"), shown)


def signed(credential: Credential, number: int, progress: Progress) -> tuple[str, bytes, bytes]:
    """Return what travels for the ``number``-th report of an attempt. Raises ValueError in a fork of its process."""
    data = packed(number, progress)
    return credential.attempt, data, credential.sign(_PURPOSE + data)


def packed(number: int, progress: Progress) -> bytes:
    """Return a report as bytes."""
    return msgspec.msgpack.encode((number, progress.done, progress.total, progress.note))


def unpacked(data: bytes) -> tuple[int, Progress]:
    """Return a report and its number, as heard of now. Raises ValueError."""
    number, done, total, note = _read_report(data)
    return number, Progress(done, total, note, time.time())


def read(credential: Credential, data: Any, signature: Any) -> tuple[int, Progress]:
    """Return a report and its number. Raises ValueError for one that the attempt's process did not sign."""
    if not isinstance(data, bytes) or not isinstance(signature, bytes):
        raise ValueError("not a report")
    if not credential.check(_PURPOSE + data, signature):
        raise ValueError("not signed by this attempt's process")
    return unpacked(data)


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool | str | bytes):
        raise TypeError(f"{name} is a number, not {value!r}")
    if type(value) in (int, float) and -_LARGEST <= value < _LARGEST:
        return value  # type: ignore[no-any-return]
    try:
        return float(value)
    except TypeError:
        raise TypeError(f"{name} is a number, not {value!r}") from None
