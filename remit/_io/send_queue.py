"""Outgate: between ``emit`` and the outbox: the queue, and what happens when more is emitted than can leave."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from remit._protocol.outbox import HEAD_BYTES, Outbox
from remit.codec import shortened
from remit.errors import EmitTimeout, FrameTooLarge, LinkClosed, QueueFull
from remit.options import Options

__all__ = ["LARGE", "SendQueue", "WouldBlock"]


LARGE: Final = 4096
"""Bytes from which an event is counted towards ``queue_bytes``: below, counting events is enough."""
LOOK: Final = 0.05
"""Seconds after which a blocked ``emit`` looks for itself whether there is room."""


Encode: TypeAlias = Callable[[str, Sequence[Any], Mapping[str, Any], Mapping[str, Any]], bytes]
"""Makes one event bytes, as `remit.codec.Codec.encode` does."""


class WouldBlock(Exception):
    """Raised where an event would have to wait for room in a thread that must not wait."""


class SendQueue:
    """Applies ``when_full`` to one outbox. An event may have ``max_event`` bytes.

    `encode`, `pending`, `small`, `capacity` and `idle` are for the path of ``emit``: an event of up to `small` bytes
    needs no `admit` while fewer than `capacity` are `pending`.
    """

    def __init__(self, outbox: Outbox, settings: Options, encode: Encode, max_event: int) -> None:
        self.encode = encode
        self.pending = outbox.pending
        self.small = min(LARGE - 1, max_event)
        self.capacity = settings.queue
        self.idle = True
        """Nobody is about to look at `pending`: whoever appends must say so. Only who serves the link makes it True."""
        self.drive: Callable[[float], None] | None = None
        """Makes progress, for some seconds, where no thread does."""
        self.dropped: Counter[str] = Counter()
        self.waiting = 0
        """Threads that wait for room."""
        self.loop = 0
        """Ident of a thread that must not wait: an event loop's."""
        self.closed = False
        """There will be no room any more."""
        self.room = threading.Condition()
        self._outbox = outbox
        self._settings = settings
        self._max_event = max_event
        self._large = 0

    def crowded(self, size: int) -> bool:
        """Whether an event of ``size`` bytes finds no room now."""
        if len(self.pending) >= self.capacity:
            return True
        return size >= LARGE and bool(self.pending) and self._bytes() + size > self._settings.queue_bytes

    def admit(self, name: str, size: int) -> bool:
        """Make room for an event, or wait for it, as ``when_full`` says; False: it is dropped.

        Raises FrameTooLarge, QueueFull, EmitTimeout, NoRoom.
        """
        largest = min(self._max_event, self._outbox.max_frame - HEAD_BYTES)
        if size > largest:
            raise FrameTooLarge(
                f"event {shortened(name)} has {size} bytes, over {largest} for this location; send it in parts"
            )
        if not self.crowded(size):
            return True
        policy = self._settings.when_full
        if policy == "raise":
            self.dropped["raised"] += 1
            raise QueueFull(f"{len(self.pending)} events wait to be sent; {name!r} was not taken")
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
                self.pending.popleft()
            except IndexError:
                return
            self.dropped["drop_oldest"] += 1

    def _block(self, name: str, size: int) -> None:
        if self.loop == threading.get_ident():
            raise WouldBlock
        deadline = time.monotonic() + self._settings.emit_timeout
        self.waiting += 1
        try:
            while self.crowded(size):
                if self.closed:
                    raise LinkClosed(f"{shortened(name)} was not taken: the client was closed while it waited for room")
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
        drive = self.drive
        if drive is not None:
            drive(seconds)
            return
        with self.room:
            self.room.wait(seconds)

    def opened(self) -> None:
        """Tell those who wait that there may be room."""
        if self.waiting:
            with self.room:
                self.room.notify_all()

    def _bytes(self) -> int:
        return sum(len(event) for event in tuple(self.pending) if len(event) >= LARGE)
