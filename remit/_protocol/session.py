"""One end of a session: the inbox, acknowledgements, probes, and the frames of the present connection.

Client and server share a session across their connections. Each direction has an outbox at the sender and an inbox at
the receiver. The rules, referred to by number in the comments:

1. Events have consecutive numbers. The inbox accepts only the next number: it drops duplicates and stores no gaps.
2. An acknowledgement carries two numbers. Events up to `received` need not be sent again. The listeners of events up to
   `done` have returned: the outbox frees these events.
3. Only RESUME causes a resend. A receiver sends it when it detects a gap; a reconnect implies it (HELLO, WELCOME).
4. A sender with unfinished events probes after `PROBE_DELAY_S` without progress (PING with its last number). The
   receiver answers ACK, or RESUME if that number has not arrived. Hence a lost frame of any kind is repaired without
   help from the transport: `Up`, `Down` and `Gap` only save the delay.
5. A frame of another connection (generation) is rejected: its numbers may belong to another state of the session.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from remit._protocol import frames
from remit._protocol.frames import EVENTS_HEAD, Bye, FrameKind
from remit._protocol.outbox import Outbox
from remit.codec import Codec, EventMessage
from remit.errors import CodecError, ProtocolError
from remit.event import Sender
from remit.transport import Credentials, Peer

FOREVER: Final = float("inf")
PROBE_DELAY_S: Final = 0.5
"""Seconds without progress before a probe; doubled after each probe, up to `PROBE_DELAY_MAX_S`."""
PROBE_DELAY_MAX_S: Final = 4.0
ACK_AFTER_EVENTS: Final = 64
"""Received events after which a delayed acknowledgement is sent in a frame of its own."""
CANCELLATIONS_KEPT: Final = 1024
"""Cancelled requests remembered until they reach their listeners."""

Received = tuple["Session", list[EventMessage], int, bool]
"""Events of one frame: session, events, how many to mark as handled (0 without numbers), whether redelivered."""


def mark_events_handled(received: Received, done: int, ready: deque[Received]) -> None:
    """Mark the first ``done`` events of a frame as handled, and put the others back at the front of ``ready``."""
    session, events, count, redelivered = received
    if done < len(events):
        rest = events[done:]
        ready.appendleft((session, rest, min(count, len(rest)), redelivered))
        count = max(0, count - len(rest))
    session.mark_handled(count)


class Inbox:
    """Receiving side of one direction: events up to ``received`` are accepted, events up to ``done`` are handled."""

    # Two counters instead of a set of numbers: FIFO links and rule 1 make a prefix sufficient. A frame of 128 events
    # costs 0.4 us, 3 ns an event; with a set it was 900 ns an event, and memory grew with the window.
    #
    # The I/O thread writes `received`, the dispatching thread writes `handled`. Neither needs a lock, because each
    # counter has one writer, and a reader that is late only acknowledges less.

    __slots__ = ("_handled_before", "_start", "duplicates", "handled", "received")

    def __init__(self, received: int = 0) -> None:
        self.received = received
        self.duplicates = 0
        self._start = received
        self._handled_before = 0
        self.handled = 0
        """Number of accepted events whose listeners have returned."""

    @property
    def done(self) -> int:
        """The last number up to which all events have been handled."""
        return self._start + max(0, self.handled - self._handled_before)

    def restart(self) -> None:
        """Count from 1 again, for another server instance. Events accepted before may still be marked as handled."""
        self._handled_before += self.received - self._start
        self.received = self._start = 0

    def has_gap_before(self, first: int) -> bool:
        """Return whether events before number ``first`` have not arrived."""
        return first > self.received + 1

    def accept(self, first: int, events: list[EventMessage]) -> list[EventMessage]:
        """Count the events as received and return the new ones. There must be no gap before ``first``."""
        known = self.received + 1 - first
        if known > 0:
            self.duplicates += min(known, len(events))
            events = events[known:]
        self.received += len(events)
        return events

    def skip(self, first: int, count: int) -> int:
        """Count ``count`` undecodable events as received; return how many of them were new."""
        new = max(0, first + count - 1 - self.received)
        self.received += new
        return new


class Session:
    """One end of a session. Its caller supplies received frames and the time, and sends the frames that it returns."""

    def __init__(self, identifier: bytes, codec: Codec, outbox: Outbox) -> None:
        self.id = identifier
        self.codec = codec
        self.outbox = outbox
        self.inbox = Inbox()
        self.peer: Peer | None = None
        """Peer token of the present connection; None without one."""
        self.generation = 0
        self.first_generation = 0
        """Number of the connection with which the session started at the server."""
        self.credentials: Credentials | None = None
        self.last_received_at = 0.0
        self.sender: Sender | None = None
        """The `Sender` of this session, once the server has made one for its listeners."""
        self.ack_due = False
        self.ack_delay = 0.0
        """Seconds that an acknowledgement may wait for an event to share its frame. 0: it is sent immediately."""
        self.frame_limit: int | None = None
        """Largest frame in bytes that may be sent before the peer has announced its own limit."""
        self.send_blocked = False
        """Whether the link has not accepted the next frame (`Sent.FULL` or `Sent.GONE`). Used by the client only."""
        self.control_frames: deque[bytes] = deque()
        self.cancelled_requests: deque[int] = deque(maxlen=CANCELLATIONS_KEPT)
        self.abandoned_requests: deque[int] = deque(maxlen=CANCELLATIONS_KEPT)
        """On the client: cancelled requests whose CANCEL is not sent yet. `cancelled_requests` is for the server."""
        self.probe_at = FOREVER
        """When `probe` is due; infinity while nothing is unfinished."""
        self._ack_at: float | None = None
        self._ack_late = False
        self._acked = 0
        self._next_frame: bytes | None = None
        self._probe_delay = PROBE_DELAY_S

    # -- sending -----------------------------------------------------------------------------------------------

    def next_frame(self) -> bytes | None:
        """Return the frame to send, or None. It is the same frame until `mark_sent` is called."""
        # Kept, because the frame is offered again after FULL: `Outbox.pop_frame` returns it only once, and an
        # authenticated link has numbered it.
        if self._next_frame is None:
            if self.control_frames:
                self._next_frame = self.control_frames.popleft()
            elif self.abandoned_requests:
                self._next_frame = frames.pack_numbers(
                    FrameKind.CANCEL, self.generation, self.abandoned_requests.popleft()
                )
            else:
                self._next_frame = self._events_or_ack()
        return self._next_frame

    def _events_or_ack(self) -> bytes | None:
        """Return an acknowledgement, or events, or both in one frame if the events are small."""
        if not self.ack_due:
            return self.outbox.pop_frame(self.frame_limit)
        if self.frame_limit is None and self.outbox.has_room_for(frames.ACK_BYTES):
            events = self.outbox.pop_frame()
            if events is not None:
                return frames.with_ack(events, *self._acknowledge())
        overdue = self._ack_late or self.inbox.received - self._acked >= ACK_AFTER_EVENTS
        if self.ack_delay and not overdue:
            return self.outbox.pop_frame(self.frame_limit)
        return frames.pack_numbers(FrameKind.ACK, self.generation, *self._acknowledge())

    def _acknowledge(self) -> tuple[int, int]:
        """Return the numbers of an acknowledgement, which is no longer due."""
        # Cleared before `done` is read. The dispatching thread may call `mark_handled` in between: the acknowledgement
        # that becomes due then must stay due, because this one does not contain those events.
        self.ack_due = self._ack_late = False
        self._ack_at = None
        self._acked = self.inbox.received
        return self._acked, self.inbox.done

    def ack_deadline(self, now: float) -> float:
        """Start or check the delay of a due acknowledgement. Return when it must be sent on its own, or infinity."""
        if not self.ack_due or not self.ack_delay:
            return FOREVER
        if self._ack_at is None:
            self._ack_at = now + self.ack_delay
        self._ack_late = now >= self._ack_at
        # An overdue acknowledgement needs no timer: it is sent in this flush, or after a frame that the transport has
        # not accepted yet. A deadline in the past would make the caller spin.
        return FOREVER if self._ack_late else self._ack_at

    def mark_sent(self, now: float) -> None:
        """Note that the transport has accepted the frame from `next_frame`."""
        self._next_frame = None
        if self.probe_at == FOREVER and self.outbox.unconfirmed:
            self.probe_at = now + self._probe_delay

    def connect(self, peer: Peer, generation: int) -> None:
        """Start another connection."""
        self.disconnect()
        self.peer = peer
        self.generation = self.outbox.generation = generation

    def disconnect(self) -> None:
        """End the connection and drop its control frames."""
        self.peer = None
        self._next_frame = None  # Its events are still in the outbox and are resent.
        self.probe_at = FOREVER
        self.control_frames.clear()

    # -- receiving ---------------------------------------------------------------------------------------------

    def handle_frame(self, kind: FrameKind, frame: bytes, now: float) -> Received | None:
        """Handle a frame of this session; return events to dispatch, if any. Raises ProtocolError."""
        if frames.generation_of(frame) != self.generation:  # Rule 5.
            raise ProtocolError("stale", f"{kind.name} of another connection")
        self.last_received_at = now
        if kind is FrameKind.EVENTS:
            return self._handle_events(frame, now)
        if kind is FrameKind.ACK or kind is FrameKind.RESUME:
            received, done = frames.unpack_numbers(kind, frame)
            self._confirm(received, done, now)
            if kind is FrameKind.RESUME:
                self.outbox.resend_unreceived()  # Rule 3.
        elif kind is FrameKind.PING:
            (last,) = frames.unpack_numbers(kind, frame)
            if last > self.inbox.received:
                self._request_resend()
            else:
                self.ack_due = True
        else:
            raise ProtocolError("unexpected", f"{kind.name} within a session")
        return None

    def probe(self, now: float) -> None:
        """Queue a PING if there was no progress until `probe_at` (rule 4)."""
        if self.probe_at == FOREVER:
            return
        if not self.outbox.unconfirmed:
            self.probe_at = FOREVER
        elif now >= self.probe_at:
            self.queue_ping()
            self._probe_delay = min(self._probe_delay * 2, PROBE_DELAY_MAX_S)
            self.probe_at = now + self._probe_delay

    def queue_ping(self) -> None:
        """Queue a PING with the last number sent."""
        self.control_frames.append(frames.pack_numbers(FrameKind.PING, self.generation, self.outbox.last))

    def queue_bye(self, why: str) -> None:
        """Queue a BYE, which ends this connection at the peer."""
        self.control_frames.append(frames.pack(Bye(why, self.generation)))

    def probe_now(self, now: float) -> None:
        """Probe at the next call of `probe`: the transport reports that frames may have been lost."""
        if self.peer is not None and self.outbox.unconfirmed:
            self.probe_at = now

    def mark_handled(self, count: int) -> None:
        """Note that the listeners of the next ``count`` events have returned; an acknowledgement becomes due."""
        if count:
            # In this order: another thread that sees ack_due must read the new count.
            self.inbox.handled += count
            self.ack_due = True

    def _handle_events(self, frame: bytes, now: float) -> Received | None:
        redelivered, first, count = frames.read_events(frame)
        body = EVENTS_HEAD
        if acked := frames.read_embedded_ack(frame):
            body += frames.ACK_BYTES
            self._confirm(*acked, now)
        if first and self.inbox.has_gap_before(first):
            self._request_resend()
            return None
        try:
            events = self.codec.decode(memoryview(frame)[body:])
            if len(events) != count:
                raise CodecError(f"frame with {len(events)} events announces {count}")
        except CodecError as error:
            if first:
                # Counted as handled: a resend would bring the same bytes again and block all later events.
                self.mark_handled(self.inbox.skip(first, count))
            raise ProtocolError("undecodable", str(error)) from error
        if not first:  # Sent at most once, without a number.
            return self, events, 0, False
        new = self.inbox.accept(first, events)
        self.ack_due = True
        return (self, new, len(new), redelivered) if new else None

    def _request_resend(self) -> None:
        resume = frames.pack_numbers(FrameKind.RESUME, self.generation, self.inbox.received, self.inbox.done)
        # One RESUME is enough, however many frames follow a gap before it is sent: each resends the whole window.
        if resume not in self.control_frames:
            self.control_frames.append(resume)

    def _confirm(self, received: int, done: int, now: float) -> None:
        if self.outbox.confirm(received, done):
            self._probe_delay = PROBE_DELAY_S
            self.probe_at = now + PROBE_DELAY_S if self.outbox.unconfirmed else FOREVER
