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
from collections.abc import Iterator
from operator import length_hint
from typing import Final

from remit._protocol import frames
from remit._protocol.frames import ACK, CANCEL, EVENTS, PING, RESUME, Bye, FrameKind
from remit._protocol.outbox import CANCELLATIONS_KEPT, Outbox
from remit.codec import UNDECODABLE, Codec, EventMessage, decode_each, errors_of
from remit.errors import CodecError, ProtocolError
from remit.event import Sender
from remit.transport import Credentials, Peer

FOREVER: Final = float("inf")
PROBE_DELAY_S: Final = 0.5
"""Seconds without progress before a probe; doubled after each probe, up to `PROBE_DELAY_MAX_S`."""
PROBE_DELAY_MAX_S: Final = 4.0
EVENT_BYTES: Final = 256
"""Bytes that a decoded event takes up beside those of its frame."""
ACK_AFTER_EVENTS: Final = 64
"""Received events after which a delayed acknowledgement is sent in a frame of its own."""


class Inbox:
    """Receiving side of one direction: events up to ``received`` are accepted, events up to ``done`` are handled."""

    # Two numbers instead of a set: FIFO links and rule 1 make a prefix sufficient. A frame of 128 events costs 0.4 us,
    # 3 ns an event; with a set it was 900 ns an event, and memory grew with the window.
    #
    # The I/O thread writes `received`, the dispatching thread writes `done`. Neither needs a lock, because each number
    # has one writer, and a reader that is late only acknowledges less.

    __slots__ = ("done", "done_bytes", "duplicates", "received", "received_bytes")

    def __init__(self, received: int = 0, duplicates: int = 0) -> None:
        self.received = self.done = received
        self.received_bytes = self.done_bytes = 0
        """Size of all events that were accepted, and handled. Events without a number count too."""
        self.duplicates = duplicates

    @property
    def waiting_bytes(self) -> int:
        """Size of the events that are accepted and not handled."""
        return self.received_bytes - self.done_bytes

    def restart(self) -> Inbox:
        """Return the inbox that counts from 1 again, for another server instance."""
        # Another object: events accepted before are still marked as handled, in the inbox that accepted them.
        return Inbox(0, self.duplicates)

    def has_gap_before(self, first: int) -> bool:
        """Return whether events before number ``first`` have not arrived."""
        return first > self.received + 1

    def new_events(self, first: int, events: list[EventMessage | None]) -> list[EventMessage | None]:
        """Return the events of a frame that are not accepted yet. There must be no gap before ``first``."""
        known = self.received + 1 - first
        if known > 0:
            self.duplicates += min(known, len(events))
            events = events[known:]
        return events

    def accept(self, last: int) -> None:
        """Count all events up to ``last`` as received."""
        if last > self.received:
            self.received = last


class Received:
    """Events of one frame that wait for dispatch. The session machine adds it to `ready`, then calls `accept`."""

    __slots__ = ("_inbox", "end", "events", "last", "left", "pending", "redelivered", "session", "undecodable")

    def __init__(self, session: Session, events: list[EventMessage | None], *, last: int = 0, size: int = 0) -> None:
        self.session = session
        self.events = events
        """The last events of the frame, from the first one that is not handled. None: an event without listeners to
        call. It keeps its place, because the numbers of the others follow from theirs."""
        self.last = last
        """Number of the last event; 0 if the events have no numbers."""
        self.redelivered = False
        self.undecodable = 0
        """Number of the events that could not be decoded. Events with the name UNDECODABLE stand for them."""
        self.pending: Iterator[EventMessage | None] | None = None
        """The events that no listener has begun, while `events` are dispatched."""
        self.left: list[EventMessage | None] = []
        """Events that the call which dispatches them goes through."""
        self._inbox = inbox = session.inbox
        self.end = inbox.received_bytes + size + EVENT_BYTES * len(events)
        """Size of the accepted events of the session up to the last one of these."""

    def accept(self) -> None:
        """Count the events as received. May be called twice."""
        # After this object is in a queue: an interrupt in between costs a frame that is sent again, not its events.
        self._inbox.received_bytes = self.end
        if self.last:
            self._inbox.accept(self.last)
            self.session.ack_due = True

    def mark_handled(self, count: int) -> None:
        """Remove the first ``count`` events, whose listeners have returned; an acknowledgement becomes due.

        Frames must be marked in the order of their arrival.
        """
        events, inbox = self.events, self._inbox
        del events[:count]
        if not events:
            inbox.done_bytes = self.end
        if self.last:
            done = self.last - len(events)
            if done > inbox.done:
                # In this order: another thread that sees ack_due must read the new number.
                inbox.done = done
            self.session.ack_due = True

    def mark_begun(self, *, unfinished: bool = False) -> int:
        """Mark the events that are no longer in `pending` as handled, and return how many were to be dispatched.

        The last one stays if it is ``unfinished``: it is awaited, and a later call marks it.
        """
        if self.pending is None:
            return 0
        count = len(self.events) - length_hint(self.pending)
        if unfinished and count:
            count -= 1
        heard = count - self.events[:count].count(None)
        self.mark_handled(count)
        if not unfinished:
            self.pending = None
        return heard


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
        self.paused = False
        """Whether events are dropped on arrival, as if they were lost, until the server has room for them."""
        self.ack_due = False
        self.ack_delay = 0.0
        """Seconds that an acknowledgement may wait for an event to share its frame. 0: it is sent immediately."""
        self.frame_limit: int | None = None
        """Largest frame in bytes that may be sent before the peer has announced its own limit."""
        self.send_blocked = False
        """Whether the link has not accepted the next frame (`Sent.FULL` or `Sent.GONE`). Used by the client only."""
        self.control_frames: deque[bytes] = deque()
        self.cancelled_requests: deque[int] = deque(maxlen=CANCELLATIONS_KEPT)
        self.probe_at = FOREVER
        """When `probe` is due; infinity while nothing is unfinished."""
        self._ack_at: float | None = None
        self._ack_late = False
        self._acked = 0
        self._next_frame: bytes | None = None
        self._probe_delay = PROBE_DELAY_S

    def next_frame(self) -> bytes | None:
        """Return the frame to send, or None. It is the same frame until `mark_sent` is called."""
        # Kept, because the frame is offered again after FULL: `Outbox.pop_frame` returns it only once, and an
        # authenticated link has numbered it.
        if self._next_frame is None:
            if self.control_frames:
                # Removed afterwards: after an interrupt the frame is sent twice, and not lost.
                self._next_frame = self.control_frames[0]
                self.control_frames.popleft()
            elif self.outbox.abandoned:
                self._next_frame = frames.pack_numbers(CANCEL, self.generation, self.outbox.abandoned[0])
                self.outbox.abandoned.popleft()
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
        return frames.pack_numbers(ACK, self.generation, *self._acknowledge())

    def _acknowledge(self) -> tuple[int, int]:
        """Return the numbers of an acknowledgement, which is no longer due."""
        # Cleared before `done` is read. The dispatching thread may mark events as handled in between: the
        # acknowledgement that becomes due then must stay due, because this one does not contain those events.
        self.ack_due = self._ack_late = False
        self._ack_at = None
        inbox = self.inbox
        self._acked = inbox.received
        return self._acked, inbox.done

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

    def mark_sent(self, now: float) -> bool:
        """Note that the transport has accepted the frame from `next_frame`. Return False if there is no other."""
        self._next_frame, outbox = None, self.outbox
        if self.probe_at == FOREVER and outbox.last > outbox.done:
            self.probe_at = now + self._probe_delay
        return bool(self.ack_due or self.control_frames or outbox.abandoned or not outbox.idle)

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

    def repair(self, now: float) -> None:
        """Continue after an interrupt in any method, as after a `Gap`: frames may be lost in both directions."""
        self._next_frame = None
        self.outbox.repair()
        self.ack_due = True
        if self.peer is not None:
            self.request_resend()
            self.probe_now(now)

    def handle_frame(self, kind: FrameKind, generation: int, frame: bytes, now: float) -> Received | None:
        """Handle a frame of connection ``generation``; return events to dispatch, if any. Raises ProtocolError."""
        if generation != self.generation:  # Rule 5.
            raise ProtocolError("stale", f"{kind.name} of another connection")
        self.last_received_at = now
        if kind is EVENTS:
            return self._handle_events(frame, now)
        if kind is ACK or kind is RESUME:
            received, done = frames.unpack_numbers(kind, frame)
            self._confirm(received, done, now)
            if kind is RESUME:
                self.outbox.resend_unreceived()  # Rule 3.
        elif kind is PING:
            (last,) = frames.unpack_numbers(kind, frame)
            if last > self.inbox.received and not self.paused:
                self.request_resend()
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
        self.control_frames.append(frames.pack_numbers(PING, self.generation, self.outbox.last))

    def queue_bye(self, why: str) -> None:
        """Queue a BYE, which ends this connection at the peer, behind the last acknowledgement."""
        if self.ack_due:  # After BYE the peer would answer it with IDENTIFY.
            self.control_frames.append(frames.pack_numbers(ACK, self.generation, *self._acknowledge()))
        self.control_frames.append(frames.pack(Bye(why, self.generation)))

    def probe_now(self, now: float) -> None:
        """Probe at the next call of `probe`: the transport reports that frames may have been lost."""
        if self.peer is not None and self.outbox.unconfirmed:
            self.probe_at = now

    def _handle_events(self, frame: bytes, now: float) -> Received | None:
        flags, first, count, body = frames.read_events(frame)
        if flags & frames.ACKNOWLEDGES:
            self._confirm(*frames.read_embedded_ack(frame), now)
        if self.paused:
            return None
        if first and self.inbox.has_gap_before(first):
            self.request_resend()
            return None
        undecodable = 0
        try:
            events = self.codec.decode(memoryview(frame)[body:])
            if len(events) != count:
                raise CodecError(f"frame with {len(events)} events announces {count}")
        except errors_of(self.codec) as error:
            # A resend would bring the same bytes again: the substitutes are received and handled like events.
            lengths = frames.read_lengths(frame) or (None,) * count
            events = decode_each(self.codec, memoryview(frame)[body:], lengths, error)
            undecodable = sum(event.name == UNDECODABLE for event in events)
        new: list[EventMessage | None] = [*events]
        if first:
            new = self.inbox.new_events(first, new)
            self.ack_due = True
            if not new:
                return None
        # Without a number they are sent at most once.
        received = Received(self, new, last=first and first + count - 1, size=len(frame))
        received.redelivered = bool(flags & frames.REDELIVERED)
        received.undecodable = undecodable
        return received

    def request_resend(self) -> None:
        """Queue a RESUME, unless one is queued."""
        inbox = self.inbox
        resume = frames.pack_numbers(RESUME, self.generation, inbox.received, inbox.done)
        # One RESUME is enough, however many frames follow a gap before it is sent: each resends the whole window.
        if resume not in self.control_frames:
            self.control_frames.append(resume)

    def _confirm(self, received: int, done: int, now: float) -> None:
        if self.outbox.confirm(received, done):
            self._probe_delay = PROBE_DELAY_S
            self.probe_at = now + PROBE_DELAY_S if self.outbox.unconfirmed else FOREVER
