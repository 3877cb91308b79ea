"""Progress of a task: the value, its encoding, and the rate limit of its reports."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

__all__ = ["Progress"]

REPORT_INTERVAL_S: Final = 0.05
MAX_NOTE_CHARS: Final = 1000
_INT_LIMIT: Final = 1 << 63  # msgpack has no larger integers

_decode: Final = msgspec.msgpack.Decoder(tuple[int | float, int | float | None, str]).decode


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a task, as last reported."""

    done: float
    total: float | None = None
    """The value of ``done`` at the end; None if it is unknown."""
    note: str = ""
    at: float = 0.0
    """Time at which the manager received the report, as of `time.time`."""

    @property
    def fraction(self) -> float | None:
        """From 0 to 1; None without a total."""
        return None if not self.total else max(0.0, min(1.0, self.done / self.total))


class ProgressReporter:
    """Sends the first report immediately, then the newest once per REPORT_INTERVAL_S. Safe from any thread."""

    def __init__(self, send: Callable[[Progress], None]) -> None:
        self._send = send
        # Also held while a report is sent, so that an older report cannot overtake a newer one.
        self._lock = threading.Lock()
        self._pending: Progress | None = None
        self._timer: threading.Timer | None = None
        self._next = 0.0

    def report(self, progress: Progress) -> None:
        """Send a report now, or after the interval unless a newer one replaces it."""
        with self._lock:
            self._pending = progress
            self._send_or_wait()

    def flush(self) -> None:
        """Send the pending report now."""
        with self._lock:
            self._send_pending()

    def _on_timer(self) -> None:
        with self._lock:
            self._timer = None
            self._send_or_wait()

    def _send_or_wait(self) -> None:
        wait = self._next - time.monotonic()
        if wait <= 0:
            self._send_pending()
        elif self._timer is None and self._pending is not None:
            self._timer = threading.Timer(wait, self._on_timer)
            self._timer.daemon = True
            self._timer.start()

    def _send_pending(self) -> None:
        progress, self._pending = self._pending, None
        if progress is not None:
            self._next = time.monotonic() + REPORT_INTERVAL_S
            self._send(progress)


def make_progress(done: float, total: float | None, note: str) -> Progress:
    """Return a progress that can be encoded. Raises TypeError if ``done`` or ``total`` is not a number."""
    shown = str(note)[:MAX_NOTE_CHARS].encode(errors="replace").decode()
    return Progress(_number(done, "done"), None if total is None else _number(total, "total"), shown)


def encode_progress(progress: Progress) -> bytes:
    """Return a progress as bytes, without its time."""
    return msgspec.msgpack.encode((progress.done, progress.total, progress.note))


def decode_progress(data: bytes) -> Progress:
    """Return an encoded progress, received now. Raises msgspec.MsgspecError."""
    done, total, note = _decode(data)
    return Progress(done, total, note, time.time())


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool | str | bytes):
        raise TypeError(f"{name} is a number, not {value!r}")
    if type(value) in (int, float) and -_INT_LIMIT <= value < _INT_LIMIT:
        return value  # type: ignore[no-any-return]
    try:
        return float(value)
    except TypeError:
        raise TypeError(f"{name} is a number, not {value!r}") from None
