"""Send window of one direction of a session: numbers events, frames them and keeps them until they are done."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, filterfalse, islice, repeat, starmap
from typing import Final

import msgspec

from remit._protocol.frames import EVENTS_HEAD, head_with_lengths, with_generation
from remit.codec import Codec

BATCH_EVENTS: Final = 128
"""Most events in one frame. From 64 events on, the share of each event in the cost of a frame is negligible."""
BATCH_BYTES: Final = 64 * 1024
"""Most bytes of events in one frame, unless a single event is larger."""
WINDOW_EVENTS: Final = 16 * 1024
"""Most events that are numbered and not done."""
WINDOW_BYTES: Final = 4 * 1024 * 1024
"""Most bytes that are framed and not done."""
EMBED_ACK_BYTES: Final = 4096
"""Largest frame in which an acknowledgement is embedded: embedding copies the frame."""
CANCELLATIONS_KEPT: Final = 1024
"""Cancelled requests remembered until they reach their listeners."""
HEAD_BYTES: Final = EVENTS_HEAD + 5
"""Bytes that a frame adds to its events: its head and the array header of the codec."""
EVENT_OVERHEAD_BYTES: Final = 5
"""Bytes that each of several events adds to a frame: its length, and the comma of JSON."""


UNBOUNDED: Final = 1 << 62
SPARE_WITHDRAWN: Final = 64
"""Withdrawn events that may stay in the queue: to remove fewer would cost more than it frees."""


class Batch(msgspec.Struct, eq=False):
    """Events with the numbers ``first`` to ``last``, which share a frame."""

    first: int
    last: int
    events: list[bytes]
    frame: bytes
    generation: int
    """Number of the connection that the frame was made for."""
    sent: bool = False
    redelivered: bool = False


class TrackedEvent(bytes):
    """An encoded event that can be withdrawn, and of which the outbox knows how far it got: a request."""

    # State of the event itself, and not of a table: a search in the queue would cost more the longer the queue is.
    request_id = 0
    batch: Batch | None = None
    """Set once the event is framed."""
    number = 0
    withdrawn = False

    @property
    def sent(self) -> bool:
        """Whether the link has accepted it."""
        return self.batch is not None and self.batch.sent


class Outbox:
    """Sending side of one direction.

    | state of an event | until                                         | fate if the session ends now |
    |-------------------|-----------------------------------------------|------------------------------|
    | pending           | it is numbered and framed, in one step        | never_sent                   |
    | framed            | the link has accepted the frame               | never_sent                   |
    | sent              | acknowledged as `received`; RESUME resends it | unknown                      |
    | received          | acknowledged as `done`                        | received                     |

    Any thread may append encoded events to `pending`. All other methods belong to the thread that owns the link. If an
    exception of a signal handler leaves one of them, `repair` must be called before the next.
    """

    # An event is numbered as late as possible: when_full may drop pending events without a gap, and a client that was
    # never connected has no numbers that a server could miss.

    def __init__(
        self,
        codec: Codec,
        *,
        max_frame: int,
        window_events: int = WINDOW_EVENTS,
        window_bytes: int = WINDOW_BYTES,
        sequenced: bool = True,
        queue: int = UNBOUNDED,
        queue_bytes: int = UNBOUNDED,
        small_bytes: int | None = None,
    ) -> None:
        self.pending: deque[bytes] = deque()
        """Encoded events without a number. A deque: append and popleft are atomic, which emit's fast path relies on."""
        self.oversized: list[bytes] = []
        """Events that exceed the max_frame of the peer, which was unknown when they were emitted."""
        self.max_frame = max_frame
        self.queue = queue
        """Most events in the queue."""
        self.queue_bytes = queue_bytes
        """Most bytes of large events in the queue. As many bytes of others fit into it at most."""
        self.small_bytes = max(0, queue_bytes // queue - 1) if small_bytes is None else small_bytes
        """Size up to which an event is not counted. By default so small that the number of events bounds their bytes:
        then `Client.emit` appends to `pending` itself."""
        self.large_bytes = 0
        """Bytes of the large events in the queue. Several threads write it without a lock; `recount` corrects it."""
        self.abandoned: deque[int] = deque(maxlen=CANCELLATIONS_KEPT)
        """Cancelled requests whose CANCEL is not sent yet."""
        self.withdrawn = 0
        """Number of withdrawn events in the queue, approximately."""
        self.refill: Callable[[], None] | None = None
        """Called when the window has room and nothing is pending; it may append events."""
        self.generation = 0
        self.received = 0
        self.done = 0
        self.last = 0
        """The last number that an event has been given."""
        self._codec = codec
        self._window_events = window_events
        self._window_bytes = window_bytes
        self._sequenced = sequenced
        self._kept: deque[Batch] = deque()
        self._unsent: deque[Batch] = deque()
        self._kept_bytes = 0
        self._taken: list[bytes] = []
        """Events removed from `pending` that are not in a batch yet."""
        self._front: deque[bytes] = deque()
        """Events between those in `_taken` and in `pending`: `compact` moves them here. Usually empty."""
        self._recount_in, self._drops = 0, False

    # -- the queue: any thread ---------------------------------------------------------------------------------

    @property
    def unframed(self) -> int:
        """Number of events without a number."""
        return len(self.pending) + len(self._front) + len(self._taken)

    @property
    def unframed_bytes(self) -> int:
        """Bytes of these events. O(n)."""
        return sum(map(len, (*self._taken, *self._front, *self.pending)))

    def is_full(self, size: int) -> bool:
        """Return whether the queue has no room for an event of ``size`` bytes now. An empty queue has room for any."""
        return self.unframed - self.withdrawn >= self.queue or self.exceeds_bytes(size)

    def exceeds_bytes(self, size: int, extra: int = 0) -> bool:
        """Return whether the queue with ``extra`` bytes more has too few for an event, however many events it has."""
        queued = self.unframed
        if size <= self.small_bytes or not queued:
            return False
        # A counter that threads share without a lock drifts, and so does one that an interrupt leaves half updated.
        # Corrected once in as many calls as there are events: O(1) for each.
        self._recount_in -= 1
        if self._recount_in < 0:
            self.recount()
        return self.large_bytes + size > self.queue_bytes + extra

    def count_bytes(self, size: int) -> None:
        """Count an event that is about to be queued."""
        if size > self.small_bytes:
            self.large_bytes += size

    def recount(self) -> None:
        """Correct `large_bytes`. O(n)."""
        self._recount_in = self.unframed
        self.large_bytes = self._large_bytes_of((*self._taken, *self._front, *self.pending))

    def pop_oldest(self) -> None:
        """Remove the oldest event of the queue. Raises IndexError."""
        self._drops = True  # This may happen after the events of a frame were measured, before they are moved.
        size = len((self._front or self.pending).popleft())
        if size > self.small_bytes:
            self.large_bytes -= size

    def withdraw(self, event: TrackedEvent) -> bool:
        """Remove an event from the queue. Return False if it is framed: it is sent, or has been sent."""
        # The owner of the link may frame it now. It reads the flag again after it has set `batch`, so one of the two
        # threads notices.
        event.withdrawn = True
        if event.batch is not None:
            return False
        self.withdrawn += 1
        return True

    def _large_bytes_of(self, events: Iterable[bytes]) -> int:
        # Only C functions: 30 ns for each event.
        return sum(filter(self.small_bytes.__lt__, map(len, events)))

    # -- the window --------------------------------------------------------------------------------------------

    def compact(self) -> None:
        """Free the withdrawn events if they are most of the queue. Amortized O(1)."""
        if self.withdrawn > SPARE_WITHDRAWN and 2 * self.withdrawn > self.unframed:
            # One call, and one assignment: an interrupt in between loses no event. Emitting threads append to `pending`
            # all the time, but only this thread touches `_front`.
            with contextlib.suppress(IndexError):  # A thread with when_full="drop_oldest" has removed some.
                self._front.extend(starmap(self.pending.popleft, repeat((), len(self.pending))))
            self._front = deque(filterfalse(_is_withdrawn, self._front))
            self.withdrawn = 0
            self.recount()

    @property
    def unconfirmed(self) -> int:
        """Number of events that are numbered and not done."""
        return self.last - self.done

    @property
    def all_done(self) -> bool:
        """Whether every event is done (or accepted by the link, if events are not numbered)."""
        # In the order in which events move, so that another thread overlooks none.
        return not (self.pending or self._front or self._taken or self._unsent or self._kept)

    @property
    def has_unreceived(self) -> bool:
        """Whether an event has not been received yet."""
        return bool(self.unframed) or bool(self._unsent) or self.last > self.received

    @property
    def idle(self) -> bool:
        """Whether no event waits to be framed or sent. If not, the window may still be full."""
        return not (self.pending or self._unsent or self._taken or self._front or self.refill is not None)

    def sendable(self, limit: int | None = None) -> bool:
        """Return whether `pop_frame` would return a frame. Does not call `refill`."""
        if self._unsent:
            return limit is None or len(self._unsent[0].frame) <= limit
        waits = self.pending or self._taken or self._front
        return bool(waits) and self._has_room() and (limit is None or not self._exceeds(limit))

    def has_room_for(self, extra: int) -> bool:
        """Frame events if needed. Return whether the next frame is small enough to copy with ``extra`` more bytes."""
        if not self._unsent and (self.pending or self._taken or self._front or self.refill is not None):
            self._frame_events()
        return bool(self._unsent) and len(self._unsent[0].frame) + extra <= min(EMBED_ACK_BYTES, self.max_frame)

    def pop_frame(self, limit: int | None = None) -> bytes | None:
        """Return the next frame of up to ``limit`` bytes, or None if nothing waits or the window is full."""
        if not self._unsent and (self.pending or self._taken or self._front or self.refill is not None):
            self._frame_events(limit)
        if not self._unsent or (limit is not None and len(self._unsent[0].frame) > limit):
            return None
        # Marked before the send: after an interrupt its events are reported as unknown, not as never_sent.
        batch = self._unsent[0]
        batch.sent = True
        if batch.generation != self.generation:
            self._rewrite_head(batch)
        self._unsent.popleft()
        return batch.frame

    def confirm(self, received: int, done: int) -> bool:
        """Apply an acknowledgement; return whether it confirms more than before. Ignore numbers beyond `last`."""
        if done > received or received > self.last or (received <= self.received and done <= self.done):
            return False
        self.received = max(self.received, received)
        self.done = max(self.done, done)
        while self._kept and self._kept[0].last <= self.done:
            self._kept[0].events.clear()  # A request among them refers to the batch.
            self._kept_bytes -= len(self._kept.popleft().frame)
        while self._unsent and self._unsent[0].last <= self.received:
            self._unsent.popleft()
        return True

    def resend_unreceived(self) -> None:
        """Queue all frames again that were not received, and CANCEL for each withdrawn request that is not done."""
        # Links are FIFO, and the inbox drops the frames after a lost one: all of them must be sent again.
        if self._sequenced:
            for batch in self._kept:
                if _has_tracked(batch.events):
                    tracked = (each for each in batch.events if isinstance(each, TrackedEvent))
                    self.abandoned.extend(each.request_id for each in tracked if each.withdrawn)
            self._unsent = deque(batch for batch in self._kept if batch.last > self.received)

    def redeliver(self) -> None:
        """Queue all unfinished frames again, marked as redelivered: another server may have handled their events."""
        self.received = self.done
        for batch in self._kept:
            if batch.sent:
                batch.redelivered = True
                self._rewrite_head(batch)
        self.resend_unreceived()

    def unfinished(self) -> Iterator[tuple[str, bytes]]:
        """Yield fate and data of each event that is not done, oldest first. Fates: received, unknown, never_sent."""
        for batch in self._kept:
            for number, event in enumerate(batch.events, batch.first):
                if number > self.done:
                    unconfirmed = "unknown" if batch.sent else "never_sent"
                    yield "received" if number <= self.received else unconfirmed, event
        for event in (*self.oversized, *self._taken, *self._front, *self.pending):
            yield "never_sent", event

    def is_done(self, event: TrackedEvent) -> bool:
        """Return whether a framed event is done, or has no number."""
        return event.batch is not None and event.number <= self.done

    def may_have_run_before(self, event: TrackedEvent) -> bool:
        """Return whether a server before the present one may have handled an event."""
        return event.batch is not None and (event.batch.redelivered or self.is_done(event))

    def queue_again(self, events: Iterable[TrackedEvent]) -> None:
        """Queue events that are done once more."""
        for event in events:
            event.batch = None
            self.count_bytes(len(event))
            self.pending.append(event)

    def _rewrite_head(self, batch: Batch) -> None:
        """Replace the head of a frame that was made for another connection. The body is not encoded again."""
        frame = with_generation(batch.frame, self.generation, redelivered=batch.redelivered)
        batch.frame, batch.generation = frame, self.generation

    def _has_room(self) -> bool:
        return self.last - self.done < self._window_events and self._kept_bytes < self._window_bytes

    def _exceeds(self, limit: int) -> bool:
        """Return whether the next event alone exceeds a limit."""
        try:
            return len((self._taken or self._front or self.pending)[0]) + HEAD_BYTES > limit
        except IndexError:  # An emitting thread with when_full="drop_oldest" has just removed it.
            return False

    def _frame_events(self, limit: int | None = None) -> None:
        """Number the next events and put them into a frame of up to ``limit`` bytes, if the window has room."""
        first, last = self.last + 1, self.last
        if last - self.done >= self._window_events or self._kept_bytes >= self._window_bytes:
            return
        if self.refill is not None and not self.unframed:
            self.refill()
        events = self._next_events(limit)
        if not events:
            return
        first, last = (first, last + len(events)) if self._sequenced else (0, 0)
        frame = self._codec.join(head_with_lengths(self.generation, first, events), events)
        batch = Batch(first, last, events, frame, self.generation)
        if _has_tracked(events):
            self._note_framed(batch)
        if self._sequenced:
            # This append numbers the events. The lines below follow from it: `repair` repeats them.
            self._kept.append(batch)
            self.last = last
            self._kept_bytes += len(frame)
        self._unsent.append(batch)
        del self._taken[: len(events)]
        if self.large_bytes:
            framed = self._large_bytes_of(events)  # First: between the call and the addition another thread may emit.
            self.large_bytes -= framed

    def _note_framed(self, batch: Batch) -> None:
        for index, event in enumerate(batch.events):
            if isinstance(event, TrackedEvent):
                event.number = batch.first + index if batch.first else 0
                event.batch = batch
                if event.withdrawn:  # By another thread, since it was taken from the queue.
                    self.abandoned.append(event.request_id)

    def _next_events(self, limit: int | None) -> list[bytes]:
        """Return the events of one frame, which stay in `_taken`."""
        taken = self._taken
        if limit is None and not taken and not self._front and len(self.pending) == 1:  # The most frequent case.
            self._move(self.pending, 1)
            fits = taken and len(taken[0]) + HEAD_BYTES <= self.max_frame
            if fits and (type(taken[0]) is bytes or not _is_withdrawn(taken[0])):
                return taken[:]
        budget = min(BATCH_BYTES, self.max_frame - HEAD_BYTES)
        if limit is not None:
            # Waits without a number until WELCOME announces the max_frame: that may be too small for the event.
            if self._exceeds(limit):
                return []
            budget = min(budget, limit - HEAD_BYTES)
        return self._next_batch(budget)

    def _next_batch(self, budget: int) -> list[bytes]:
        """Return events of up to ``budget`` bytes. Move those that exceed max_frame to `oversized`."""
        taken, largest = self._taken, self.max_frame - HEAD_BYTES
        room = min(BATCH_EVENTS, self._window_events - (self.last - self.done))
        while self.pending or taken or self._front:
            measured = not taken
            self._take(room - len(taken), budget)
            while taken and len(taken[0]) > largest:
                if not self.oversized or self.oversized[-1] is not taken[0]:
                    self.oversized.append(taken[0])
                del taken[0]
            if taken:
                return taken[:] if measured and not self._drops else taken[: _count_fitting(taken[:room], budget)]
        return []

    def _take(self, room: int, budget: int) -> None:
        """Move pending events to `_taken`, no more than fit a frame."""
        pending = self._front or self.pending
        if room > 0 and pending:
            # Measured first, so that no event leaves the bounds of the queue before it can be sent.
            self._move(pending, _count_fitting(tuple(islice(pending, min(room, len(pending)))), budget))
        if _has_tracked(self._taken):
            self.withdrawn -= sum(map(_is_withdrawn, self._taken))
            self._taken[:] = filterfalse(_is_withdrawn, self._taken)

    def _move(self, pending: deque[bytes], count: int) -> None:
        """Move ``count`` events to `_taken`."""
        # In one call of C: an interrupt between popleft() and append() would lose an event.
        try:  # noqa: SIM105 - `suppress` costs 0.5 us
            self._taken.extend(starmap(pending.popleft, repeat((), count)))
        except IndexError:  # drop_oldest in another thread has removed the rest.
            pass

    def repair(self) -> None:
        """Complete what an interrupted method has left half done; queue again all frames that were not received."""
        if self._sequenced:
            if self._kept:
                self.last = max(self.last, self._kept[-1].last)
            while self._kept and self._kept[0].last <= self.done:
                self._kept.popleft()
            self._kept_bytes = sum(len(batch.frame) for batch in self._kept)
            self.resend_unreceived()
        framed = self._kept or self._unsent
        if framed and self._taken and framed[-1].events[0] is self._taken[0]:
            del self._taken[: len(framed[-1].events)]
        self.recount()


def _count_fitting(events: Sequence[bytes], budget: int) -> int:
    """Return how many of the events fit into a frame with ``budget`` bytes of events; at least 1, if there is one."""
    if sum(map(len, events)) + len(events) * EVENT_OVERHEAD_BYTES <= budget:
        return len(events)
    sizes = accumulate(len(event) + EVENT_OVERHEAD_BYTES for event in events)
    return max(1, sum(1 for size in sizes if size <= budget))


def _has_tracked(events: Sequence[bytes]) -> bool:
    """Return whether some of the events are `TrackedEvent`. Most frames have none, which costs 14 ns for each event."""
    return [*map(type, events)].count(bytes) < len(events)


def _is_withdrawn(event: bytes) -> bool:
    return isinstance(event, TrackedEvent) and event.withdrawn
