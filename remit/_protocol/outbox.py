"""Outbox: one direction of a session, on the sending side: number, window, resend, forget when done."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from remit._protocol.frames import EVENTS_HEAD, events_head
from remit.codec import Codec

__all__ = ["BATCH_BYTES", "BATCH_EVENTS", "WINDOW_BYTES", "WINDOW_EVENTS", "Batch", "Outbox"]


BATCH_EVENTS: Final = 128
"""Events in one frame at the most: beyond 64 the cost of a frame is already spread thin."""
BATCH_BYTES: Final = 64 * 1024
"""Bytes of events in one frame, unless a single event is larger."""
WINDOW_EVENTS: Final = 16 * 1024
"""Events under way, sent but not confirmed as done."""
WINDOW_BYTES: Final = 4 * 1024 * 1024
"""Bytes under way."""
EMBED_ACK_BYTES: Final = 4096
"""Bytes of a frame that may be copied to put an acknowledgement into it."""
HEAD_BYTES: Final = EVENTS_HEAD + 5
"""What a frame adds to its events: its head and a codec's array header."""


@dataclass(slots=True, eq=False)
class Batch:
    """Events that share a frame, with the numbers ``first`` to ``last``."""

    first: int
    last: int
    events: list[bytes]
    frame: bytes
    generation: int
    """The connection that the frame was made for."""
    sent: bool = False
    redelivered: bool = False


class Outbox:
    """Events on their way out.

    Any thread may append encoded events to `pending`; everything else belongs to the link's owner. An event gets
    its number when it is first framed, and is kept until the other side says that it is done.
    """

    def __init__(
        self,
        codec: Codec,
        *,
        max_frame: int,
        window_events: int = WINDOW_EVENTS,
        window_bytes: int = WINDOW_BYTES,
        sequenced: bool = True,
    ) -> None:
        self.pending: deque[bytes] = deque()
        """Encoded events that have no number yet."""
        self.oversized: list[bytes] = []
        """Events that turned out to be over the other side's ``max_frame``."""
        self.max_frame = max_frame
        self.refill: Callable[[], None] | None = None
        """Called when there is room and nothing is pending: it may append more."""
        self.generation = 0
        """The connection that frames are made for."""
        self.received = 0
        self.done = 0
        self.last = 0
        """The last number given."""
        self._codec = codec
        self._window_events = window_events
        self._window_bytes = window_bytes
        self._sequenced = sequenced
        self._kept: deque[Batch] = deque()
        self._unsent: deque[Batch] = deque()
        self._kept_bytes = 0

    @property
    def unconfirmed(self) -> int:
        """Events with a number that are not known to be done."""
        return self.last - self.done

    @property
    def all_done(self) -> bool:
        """Whether every event is known to be done (or was given to the transport, where none is numbered)."""
        return not self.pending and not self._unsent and self.done == self.last

    @property
    def has_unreceived(self) -> bool:
        """Whether anything is still to be sent, or was sent and is not known to be received."""
        return bool(self.pending) or bool(self._unsent) or self.last > self.received

    @property
    def oldest(self) -> int:
        """The first number not known to be done."""
        return self.done + 1

    def sendable(self, limit: int | None = None) -> bool:
        """Whether `take` would return a frame, as far as is known before it is made."""
        if self._unsent:
            return limit is None or len(self._unsent[0].frame) <= limit
        return bool(self.pending) and self._room() and (limit is None or not self._over(limit))

    def has_room_for(self, more: int) -> bool:
        """Whether the next frame is small, and may have ``more`` bytes."""
        if not self._unsent and (self.pending or self.refill is not None):
            self._frame()
        return bool(self._unsent) and len(self._unsent[0].frame) + more <= min(EMBED_ACK_BYTES, self.max_frame)

    def pop_frame(self, limit: int | None = None) -> bytes | None:
        """Return the next frame to send, or None: nothing waits, or the window is full.

        A frame over ``limit`` bytes is left for later.
        """
        if not self._unsent and (self.pending or self.refill is not None):
            self._frame(limit)
        if not self._unsent or (limit is not None and len(self._unsent[0].frame) > limit):
            return None
        batch = self._unsent.popleft()
        batch.sent = True
        if batch.generation != self.generation:
            self._renew(batch)
        return batch.frame

    def confirm(self, received: int, done: int) -> bool:
        """Hear an acknowledgement; True if it told something new. Numbers never given are ignored."""
        if done > received or received > self.last or (received <= self.received and done <= self.done):
            return False
        self.received = max(self.received, received)
        self.done = max(self.done, done)
        while self._kept and self._kept[0].last <= self.done:
            self._kept_bytes -= len(self._kept.popleft().frame)
        while self._unsent and self._unsent[0].last <= self.received:
            self._unsent.popleft()
        return True

    def resend_unreceived(self) -> None:
        """Send again all that was not received."""
        if self._sequenced:
            self._unsent = deque(batch for batch in self._kept if batch.last > self.received)

    def redeliver(self) -> None:
        """Send again all that is not done, marked: another server instance may have run it before."""
        self.received = self.done
        for batch in self._kept:
            if batch.sent:
                batch.redelivered = True
                self._renew(batch)
        self.resend_unreceived()

    def unfinished(self) -> Iterator[tuple[str, bytes]]:
        """Yield each event that is not known to be done, oldest first, as received, unknown or never_sent."""
        for batch in self._kept:
            for number, event in enumerate(batch.events, batch.first):
                if number > self.done:
                    yield self._fate(number, batch), event
        for event in (*self.oversized, *self.pending):
            yield "never_sent", event

    def unfinished_ids(self, *, sent: bool = True, marked: bool = True) -> set[int]:
        """Return the ids of the events that are not known to be done.

        Without ``sent`` those that were sent are left out, without ``marked`` those that another server may have run.
        """
        ids = {id(event) for event in (*self.oversized, *self.pending)}
        for batch in self._kept:
            if (sent or not batch.sent) and (marked or not batch.redelivered):
                ids.update(id(event) for number, event in enumerate(batch.events, batch.first) if number > self.done)
        return ids

    def _fate(self, number: int, batch: Batch) -> str:
        if number <= self.received:
            return "received"
        return "unknown" if batch.sent else "never_sent"

    def _renew(self, batch: Batch) -> None:
        """Make a frame for another connection fit this one."""
        head = events_head(self.generation, batch.first, len(batch.events), redelivered=batch.redelivered)
        batch.frame, batch.generation = head + batch.frame[EVENTS_HEAD:], self.generation

    def _room(self) -> bool:
        return self.last - self.done < self._window_events and self._kept_bytes < self._window_bytes

    def _over(self, limit: int) -> bool:
        """Whether the next event alone is over a limit; it may be gone by now, if emitters drop the oldest."""
        try:
            return len(self.pending[0]) + HEAD_BYTES > limit
        except IndexError:
            return False

    def _frame(self, limit: int | None = None) -> None:
        """Give numbers to the next events and put them into a frame of up to ``limit`` bytes, if the window allows."""
        if not self._room():
            return
        if not self.pending and self.refill is not None:
            self.refill()
        if not self.pending:
            return
        events = self._pick(limit)
        if not events:
            return
        if not self._sequenced:
            frame = self._codec.join(events_head(self.generation, 0, len(events)), events)
            self._unsent.append(Batch(0, 0, events, frame, self.generation))
            return
        first, self.last = self.last + 1, self.last + len(events)
        frame = self._codec.join(events_head(self.generation, first, len(events)), events)
        batch = Batch(first, self.last, events, frame, self.generation)
        self._kept.append(batch)
        self._unsent.append(batch)
        self._kept_bytes += len(batch.frame)

    def _pick(self, limit: int | None) -> list[bytes]:
        """Take from `pending` what fits one frame; what fits none is put aside.

        What is over ``limit`` stays: with a number it would have to be sent, whatever the other side can take.
        """
        pending, size = self.pending, 0
        events: list[bytes] = []
        budget = min(BATCH_BYTES, self.max_frame - HEAD_BYTES)
        if limit is not None:
            if self._over(limit):
                return events
            budget = min(budget, limit - HEAD_BYTES)
        room = min(BATCH_EVENTS, self._window_events - (self.last - self.done))
        while pending and len(events) < room:
            try:
                event = pending.popleft()
            except IndexError:  # an emitter that drops the oldest was faster
                break
            size += len(event) + 1
            if size > budget and events:
                pending.appendleft(event)
                break
            if len(event) + HEAD_BYTES > self.max_frame:
                self.oversized.append(event)
                size = 0
                continue
            events.append(event)
        return events
