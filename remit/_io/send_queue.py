"""Bounded queue in front of the outbox, with the when_full policies."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from remit._protocol.outbox import HEAD_BYTES, Outbox
from remit.codec import Codec, shortened
from remit.errors import EmitTimeout, FrameTooLarge, LinkClosed, QueueFull
from remit.options import Options

ROOM_POLL_INTERVAL_S: Final = 0.05
"""Upper bound of one wait for room: a missed notification delays a blocked emit by this much."""


class WouldBlock(Exception):
    """Raised with the event's name instead of waiting for room in `SendQueue.nonblocking_thread`."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class SendQueue:
    """Applies ``when_full`` to the events of one outbox.

    `Client.emit` reads `encode`, `pending`, `small`, `capacity` and `idle` itself: an event of at most `small` bytes
    needs no `reserve` while fewer than `capacity` events are pending. A call of `put` instead would cost 1.2 us for
    each emit, not 0.7 us.
    """

    def __init__(self, outbox: Outbox, options: Options, codec: Codec) -> None:
        self.encode = codec.encode
        self.pending = outbox.pending
        self.small = min(outbox.small_bytes, outbox.max_frame - HEAD_BYTES)
        self.capacity = options.queue
        self.idle = True
        """Whether no thread is about to read `pending`: then a thread that appends must call `wake`. Only the thread
        that holds the link sets True, and then reads `pending` once more. Any thread may set False."""
        self.wake: Callable[[], None] = lambda: None
        """`wake` of the driver, which sends soon. Raises SessionRefused."""
        self.serve: Callable[[float], None] | None = None
        """Waits up to the given seconds and pumps the link. Set while no I/O thread runs, for a blocked emit."""
        self.dropped: Counter[str] = Counter()
        self.waiting = 0
        """Threads that wait for room."""
        self.nonblocking_thread = 0
        """Ident of the event loop's thread, in which `reserve` must not wait; 0 without an event loop."""
        self.on_room: Callable[[], None] = lambda: None
        """Wakes the tasks of an event loop that wait for room."""
        self.closed = False
        self._room = threading.Condition()
        self._outbox = outbox
        self._options = options

    def put(self, name: str, data: bytes) -> bool:
        """Append an encoded event. Return False if ``when_full`` drops it. Raises as `reserve` and `wake`."""
        if not self.reserve(name, len(data)):
            return False
        self.pending.append(data)
        if self.idle:
            self.wake()
        return True

    def reserve(self, name: str, size: int) -> bool:
        """Make or await room for one event as ``when_full`` demands, and count its bytes. Return False to drop it.

        Raises FrameTooLarge, QueueFull, EmitTimeout, LinkClosed, WouldBlock.
        """
        largest = self._outbox.max_frame - HEAD_BYTES
        if size > largest:
            raise FrameTooLarge(
                f"event {shortened(name)} has {size} bytes, over {largest} for this location; send it in parts"
            )
        if self._outbox.is_full(size):
            policy = self._options.when_full
            if policy == "raise":
                self.dropped["raised"] += 1
                raise QueueFull(f"{name!r} was not queued: {self._outbox.unframed} events wait to be sent")
            if policy == "drop_newest":
                self.dropped[policy] += 1
                return False
            if policy == "drop_oldest":
                self._drop_oldest(size)
            else:
                self._wait_for_room(name, size)
        self._outbox.count_bytes(size)
        return True

    def _drop_oldest(self, size: int) -> None:
        while self._outbox.is_full(size):
            try:
                self._outbox.pop_oldest()
            except IndexError:  # The I/O thread has taken the rest.
                return
            self.dropped["drop_oldest"] += 1

    def _wait_for_room(self, name: str, size: int) -> None:
        if self.nonblocking_thread == threading.get_ident():
            raise WouldBlock(name)
        deadline = time.monotonic() + self._options.emit_timeout
        self.waiting += 1
        try:
            while self._outbox.is_full(size):
                if self.closed:
                    raise LinkClosed(f"{shortened(name)} was not queued: the client was closed while it waited")
                left = deadline - time.monotonic()
                if left <= 0:
                    raise self.timeout_error(name)
                left = min(left, ROOM_POLL_INTERVAL_S)
                serve = self.serve
                if serve is not None:
                    serve(left)
                    continue
                with self._room:
                    if not self._room.wait(left):
                        self._outbox.recount()
        finally:
            self.waiting -= 1

    def timeout_error(self, name: str) -> EmitTimeout:
        """Count an event that found no room in time, and return its error."""
        self.dropped["timed_out"] += 1
        return EmitTimeout(
            f"{name!r} was not queued: the queue stayed full for {self._options.emit_timeout} s; "
            "is the server being ticked?"
        )

    def notify_room(self) -> None:
        """Wake the threads and the event loop that wait for room."""
        if self.waiting:
            self.on_room()
            with self._room:
                self._room.notify_all()
