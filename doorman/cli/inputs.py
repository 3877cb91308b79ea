"""Inputs: what `doorman map` runs a command for: words of the command line, or lines as they come in."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Final

__all__ = ["Inputs"]

AHEAD: Final = 1024
"""Lines that are read before they are wanted."""
CHUNK: Final = 1 << 16
"""Bytes of one read."""


class Inputs:
    """Inputs in their order; `take` never waits. ``total`` is None until the last one is known."""

    def __init__(self, given: Sequence[str]) -> None:
        self.total: int | None = len(given)
        self._given = iter(given)
        self._taken = 0

    @property
    def ended(self) -> bool:
        """Whether all have been taken."""
        return self._taken == self.total

    @property
    def taken(self) -> int:
        """How many have been taken."""
        return self._taken

    def take(self) -> str | None:
        """Return the next; None if there is none, or none yet."""
        text = self._next()
        if text is not None:
            self._taken += 1
        return text

    def _next(self) -> str | None:
        return next(self._given, None)

    @classmethod
    def read(cls, descriptor: int, separator: bytes, wake: Callable[[], None]) -> Inputs:
        """Take them from a descriptor as they come; ``wake`` is called, in a thread, when some have."""
        return _Read(descriptor, separator, wake)


class _Read(Inputs):
    def __init__(self, descriptor: int, separator: bytes, wake: Callable[[], None]) -> None:
        super().__init__(())
        self.total = None
        self._lines: queue.Queue[str] = queue.Queue(AHEAD)
        self._separator, self._wake = separator, wake
        # By the descriptor, without a buffer of Python's: the thread may well be in a read when the program ends.
        threading.Thread(target=self._run, args=(descriptor,), name="doorman-inputs", daemon=True).start()

    def _next(self) -> str | None:
        try:
            return self._lines.get_nowait()
        except queue.Empty:
            return None

    def _run(self, descriptor: int) -> None:
        """Thread: cut what is read into lines. Empty ones are no inputs."""
        count, rest = 0, b""
        while chunk := _some(descriptor):
            *lines, rest = (rest + chunk).split(self._separator)
            for line in filter(None, lines):
                self._put(line)
                count += 1
        if rest:
            self._put(rest)
            count += 1
        self.total = count
        self._wake()

    def _put(self, line: bytes) -> None:
        self._lines.put(os.fsdecode(line))
        self._wake()


def _some(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, CHUNK)
    except OSError:
        return b""  # closed, or a terminal that is another's
