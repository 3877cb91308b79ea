"""Bounded queue in front of the outbox, with the when_full policies."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final

from remit._protocol.outbox import HEAD_BYTES, Outbox
from remit.codec import Codec, scalars_encoder, shortened
from remit.errors import EmitTimeout, FrameTooLarge, LinkClosed, QueueFull, WouldDeadlock
from remit.options import Options
from remit.transport import next_item

ROOM_POLL_INTERVAL_S: Final = 0.05
"""Upper bound of one wait for room: a missed notification delays a blocked emit by this much."""
NOTIFY_POLL_S: Final = 1.0
"""Upper bound of one wait for a notification."""


class WaitingThreads(deque[SimpleQueue[None]]):
    """Threads that wait for a notification. No lock: a finalizer may notify, and an interrupt leaves nothing held."""

    __slots__ = ()

    def wait(self, seconds: float, *, unless: Callable[[], object]) -> bool:
        """Wait for `notify`, unless the condition is true. Return False if it does not come within ``seconds``.

        ``seconds`` are limited. The caller checks its condition and its deadline, and waits again: an interrupt may
        lose a notification.
        """
        bell: SimpleQueue[None] = SimpleQueue()
        self.append(bell)
        # After the bell is in place: a change from now on rings it.
        rung = bool(unless())
        if not rung:
            with contextlib.suppress(Empty):
                next_item(bell, max(0.0, min(seconds, NOTIFY_POLL_S)))
                rung = True
        with contextlib.suppress(ValueError):
            self.remove(bell)
        return rung

    def notify(self) -> None:
        """Wake the threads that wait."""
        with contextlib.suppress(IndexError):
            while True:
                self.popleft().put(None)


class WouldBlock(Exception):
    """Raised with the event's name instead of waiting for room in `SendQueue.nonblocking_thread`."""


class SendQueue:
    """Applies ``when_full`` to the events of one outbox.

    `Client.emit` reads `encode_scalars`, `append`, `small`, `capacity` and `idle` itself: an event of at most `small`
    bytes needs no `reserve` while fewer than `capacity` events are pending. `encode` and `put` do the same, but
    cost more.
    """

    def __init__(self, outbox: Outbox, options: Options, codec: Codec) -> None:
        self.encode = codec.encode
        self.encode_scalars = scalars_encoder(codec)
        self.pending = outbox.pending
        self.append: Callable[[bytes], None] = outbox.pending.append
        """Appends to `pending`. After `close` it raises LinkClosed: an emit is refused, or precedes the last events."""
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
        self.waiting = WaitingThreads()
        """Threads that wait for room."""
        self.holds_link: Callable[[], bool] = lambda: False
        """Whether the calling thread is the one that would have to make room."""
        self.nonblocking_thread = 0
        """Ident of the event loop's thread, in which `reserve` must not wait; 0 without an event loop."""
        self.on_room: Callable[[], None] | None = None
        """Wakes the tasks of an event loop that wait for room. Called once."""
        self.why: Callable[[], str] = lambda: ""
        """Returns why there is no connection; empty if there is one."""
        self.closed = False
        self._outbox = outbox
        self._options = options

    def put(self, name: str, data: bytes) -> bool:
        """Append an encoded event. Return False if ``when_full`` drops it. Raises as `reserve` and `wake`."""
        if not self.reserve(name, len(data)):
            return False
        self.append(data)
        if self.idle:
            self.wake()
        return True

    def close(self) -> None:
        """Refuse further events, and end the waits for room."""
        self.append = self._refuse
        self.closed = True
        self.waiting.notify()

    def _refuse(self, data: bytes) -> None:
        raise LinkClosed("the client is closed: open another one")

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
        if self.holds_link():
            raise WouldDeadlock(
                f"{name!r} was not queued: the queue is full, and this thread would have to send it; emit elsewhere"
            )
        deadline = time.monotonic() + self._options.emit_timeout
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
            if not self.waiting.wait(left, unless=lambda: not self._outbox.is_full(size)):
                self._outbox.recount()

    def timeout_error(self, name: str) -> EmitTimeout:
        """Count an event that found no room in time, and return its error."""
        self.dropped["timed_out"] += 1
        return EmitTimeout(
            f"{name!r} was not queued: the queue stayed full for {self._options.emit_timeout} s; "
            + (self.why() or "is the server being ticked?")
        )

    def notify_room(self) -> None:
        """Wake the threads and the event loop that wait for room."""
        on_room, self.on_room = self.on_room, None
        if on_room is not None:
            on_room()
        self.waiting.notify()
