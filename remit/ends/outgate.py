"""Outgate: between ``emit`` and the outbox: what happens when more is emitted than can leave."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from remit.errors import EmitTimeout, QueueFull
from remit.protocol.outbox import Outbox
from remit.settings import Settings

__all__ = ["LARGE", "Outgate"]

LARGE: Final = 4096
"""Bytes from which an event is counted towards ``queue_bytes``: below, counting events is enough."""
LOOK: Final = 0.05
"""Seconds after which a blocked ``emit`` looks for itself whether there is room."""


class Outgate:
    """Applies ``when_full`` to one outbox. ``drive`` makes progress where no thread does, for some seconds."""

    def __init__(self, outbox: Outbox, settings: Settings, drive: Callable[[float], None] | None) -> None:
        self.dropped: Counter[str] = Counter()
        self.waiting = 0
        """Threads that wait for room."""
        self.room = threading.Condition()
        self._outbox = outbox
        self._settings = settings
        self._drive = drive
        self._large = 0

    def crowded(self, size: int) -> bool:
        """Whether an event of ``size`` bytes finds no room now."""
        pending = self._outbox.pending
        if len(pending) >= self._settings.queue:
            return True
        return size >= LARGE and bool(pending) and self._bytes() + size > self._settings.queue_bytes

    def admit(self, name: str, size: int) -> bool:
        """Make room for an event, or wait for it, as ``when_full`` says; False: it is dropped.

        Raises QueueFull, EmitTimeout.
        """
        if not self.crowded(size):
            return True
        policy = self._settings.when_full
        if policy == "raise":
            self.dropped["raised"] += 1
            raise QueueFull(f"{len(self._outbox.pending)} events wait to be sent; {name!r} was not taken")
        if policy == "drop_newest":
            self.dropped[policy] += 1
            return False
        if policy == "drop_oldest":
            self._drop_oldest(size)
            return True
        self._block(name, size)
        return True

    def _drop_oldest(self, size: int) -> None:
        while self.crowded(size):
            try:
                self._outbox.pending.popleft()
            except IndexError:
                return
            self.dropped["drop_oldest"] += 1

    def _block(self, name: str, size: int) -> None:
        deadline = time.monotonic() + self._settings.emit_timeout
        self.waiting += 1
        try:
            while self.crowded(size):
                left = deadline - time.monotonic()
                if left <= 0:
                    self.dropped["timed_out"] += 1
                    raise EmitTimeout(
                        f"{name!r} was not taken: the queue stayed full for {self._settings.emit_timeout} s; "
                        "is the server being ticked?"
                    )
                self._wait(min(left, LOOK))
        finally:
            self.waiting -= 1

    def _wait(self, seconds: float) -> None:
        if self._drive is not None:
            self._drive(seconds)
            return
        with self.room:
            self.room.wait(seconds)

    def opened(self) -> None:
        """Tell those who wait that there may be room."""
        if self.waiting:
            with self.room:
                self.room.notify_all()

    def _bytes(self) -> int:
        return sum(len(event) for event in tuple(self._outbox.pending) if len(event) >= LARGE)
