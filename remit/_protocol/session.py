"""Session: what one client and one server share across their connections: an outbox and an inbox at each end."""

from __future__ import annotations

from collections import deque
from typing import Any, Final, TypeVar

from remit._protocol import frames
from remit._protocol.frames import EVENTS_HEAD, Kind
from remit._protocol.outbox import Outbox
from remit.codec import Codec, EventMessage
from remit.errors import CodecError, ProtocolError
from remit.transport import Credentials, Peer

__all__ = ["PROBE_DELAY_S", "Inbox", "Received", "Session"]


T = TypeVar("T")


class Inbox:
    """What has come in: ``received`` were admitted, ``done`` have been handled.

    `finish` may be called by one other thread than all else: each of the two counts what is its own.
    """

    __slots__ = ("_before", "_handled", "_start", "duplicates", "received")

    def __init__(self, received: int = 0) -> None:
        self.received = received
        self.duplicates = 0
        self._start = received
        self._before = 0
        self._handled = 0

    @property
    def done(self) -> int:
        """The last number up to which all have been handled."""
        return self._start + max(0, self._handled - self._before)

    @property
    def all_handled(self) -> bool:
        """Whether all that was admitted has been handled."""
        return self.done == self.received

    def restart(self) -> None:
        """Begin with number 1 again, at another server's session; what was admitted before will still be finished."""
        self._before += self.received - self._start
        self.received = self._start = 0

    def has_gap_before(self, first: int) -> bool:
        """Whether events before ``first`` have not arrived."""
        return first > self.received + 1

    def accept(self, first: int, events: list[T]) -> list[T]:
        """Return those of the events that are new, to be handled in this order. Not for what is `missing`."""
        known = self.received + 1 - first
        if known > 0:
            self.duplicates += min(known, len(events))
            events = events[known:]
        self.received += len(events)
        return events

    def skip(self, first: int, count: int) -> int:
        """Pass over ``count`` events that nobody can read, as if handled; return how many were new."""
        new = max(0, first + count - 1 - self.received)
        self.received += new
        return new

    def mark_handled(self, count: int) -> None:
        """Note that the listeners of the next ``count`` events have returned."""
        self._handled += count


PROBE_DELAY_S: Final = 0.5
"""Seconds without progress after which the other side is asked what it did; doubles up to `PROBE_MAX`."""
PROBE_DELAY_MAX_S: Final = 4.0
ACK_AFTER_EVENTS: Final = 64
"""Events that may be received before an acknowledgement waits no longer."""
CANCELLATIONS_KEPT: Final = 1024
"""Cancellations remembered for requests that have not come to their listeners yet."""

Received = tuple["Session", list[EventMessage], int, bool]
"""Events to be handled: whose, which, how many numbers they finish, whether redelivered."""


class Session:
    """One end of a session. Fed with frames and the time; gives frames to send."""

    def __init__(self, identifier: bytes, codec: Codec, outbox: Outbox) -> None:
        self.id = identifier
        self.codec = codec
        self.outbox = outbox
        self.inbox = Inbox()
        self.peer: Peer | None = None
        """The connection it is reached by now; None while there is none."""
        self.generation = 0
        """Counts its connections."""
        self.first_generation = 0
        """The connection with which it began at the server's end."""
        self.credentials: Credentials | None = None
        self.last_received_at = 0.0
        """When the last frame came in."""
        self.sender: Any = None
        """What the endpoint's owner made of this session for its listeners."""
        self.ack_due = False
        self.ack_delay = 0.0
        """Seconds that an acknowledgement may wait for events to leave with. Only for whoever comes back in time."""
        self.frame_limit: int | None = None
        """Bytes of a frame that may leave before the other side has named its own limit."""
        self.send_blocked = False
        """The transport did not take the frame that is next."""
        self.control_frames: deque[bytes] = deque()
        self.cancelled_requests: deque[int] = deque(maxlen=CANCELLATIONS_KEPT)
        """The other side's requests whose answers nobody waits for any more."""
        self.abandoned_requests: deque[int] = deque(maxlen=CANCELLATIONS_KEPT)
        """Our own requests of which the other side has yet to be told that nobody waits."""
        self._ack_at: float | None = None
        self._ack_late = False
        self._acked = 0
        self._held: bytes | None = None
        self._probe_at: float | None = None
        self._probe_after = PROBE_DELAY_S

    # -- sending -----------------------------------------------------------------------------------------------

    def next_frame(self) -> bytes | None:
        """Return the frame to send next; the same one until `sent` is called. None: nothing to send now."""
        if self._held is None:
            if self.control_frames:
                self._held = self.control_frames.popleft()
            elif self.abandoned_requests:
                self._held = frames.cancel(self.generation, self.abandoned_requests.popleft())
            else:
                self._held = self._events_or_ack()
        return self._held

    def _events_or_ack(self) -> bytes | None:
        """Return an acknowledgement, or events, or both in one frame if the events are small."""
        if not self.ack_due:
            return self.outbox.pop_frame(self.frame_limit)
        received, done = self.inbox.received, self.inbox.done
        if self.frame_limit is None and self.outbox.has_room_for(frames.ACK_BYTES):
            events = self.outbox.pop_frame()
            if events is not None:
                self._acknowledged(received)
                return frames.with_ack(events, received, done)
        if self.ack_delay and not self._ack_overdue(received):
            return self.outbox.pop_frame(self.frame_limit)
        self._acknowledged(received)
        return frames.ack(self.generation, received, done)

    def _ack_overdue(self, received: int) -> bool:
        return self._ack_late or received - self._acked >= ACK_AFTER_EVENTS

    def _acknowledged(self, received: int) -> None:
        self.ack_due = self._ack_late = False
        self._ack_at = None
        self._acked = received

    def ack_deadline(self, now: float) -> float:
        """Return when an acknowledgement that waits for company has to leave alone; infinity if none waits for that."""
        if not self.ack_due or not self.ack_delay:
            return float("inf")
        if self._ack_at is None:
            self._ack_at = now + self.ack_delay
        self._ack_late = now >= self._ack_at
        # An overdue one leaves with this very flush, or behind a frame that the transport has yet to take.
        return float("inf") if self._ack_late else self._ack_at

    def mark_sent(self, now: float) -> None:
        """Note that the transport took the frame from `next`."""
        self._held = None
        if self._probe_at is None and self.outbox.unconfirmed:
            self._probe_at = now + self._probe_after

    def connect(self, peer: Peer, generation: int) -> None:
        """Begin another connection."""
        self.disconnect()
        self.peer = peer
        self.generation = self.outbox.generation = generation

    def disconnect(self) -> None:
        """Forget the connection: what was meant for it only is dropped."""
        self.peer = None
        self._held = None
        self._probe_at = None
        self.control_frames.clear()

    # -- hearing -----------------------------------------------------------------------------------------------

    def handle_frame(self, kind: Kind, frame: bytes, now: float) -> Received | None:
        """Take a frame; return events to be handled, if any. Raises ProtocolError."""
        if frames.generation_of(frame) != self.generation:
            raise ProtocolError("stale", f"{kind.name} of another connection")
        self.last_received_at = now
        if kind is Kind.EVENTS:
            return self._hear_events(frame, now)
        if kind is Kind.ACK or kind is Kind.RESUME:
            received, done = frames.read_ack(frame)
            if self.outbox.confirm(received, done):
                self._progress(now)
            if kind is Kind.RESUME:
                self.outbox.resend_unreceived()
        elif kind is Kind.PING:
            self._answer(frames.read_ping(frame))
        else:
            raise ProtocolError("unexpected", f"{kind.name} within a session")
        return None

    @property
    def probe_at(self) -> float:
        """When `probe` is due; infinity while all that was sent is known to be done."""
        return float("inf") if self._probe_at is None else self._probe_at

    def probe(self, now: float) -> float | None:
        """Ask what was received and done if there was no progress for long; return when to come again."""
        if self._probe_at is None:
            return None
        if not self.outbox.unconfirmed:
            self._probe_at = None
        elif now >= self._probe_at:
            self.control_frames.append(frames.ping(self.generation, self.outbox.last))
            self._probe_after = min(self._probe_after * 2, PROBE_DELAY_MAX_S)
            self._probe_at = now + self._probe_after
        return self._probe_at

    def probe_now(self, now: float) -> None:
        """Something may have been lost: ask at the next chance."""
        if self.outbox.unconfirmed:
            self._probe_at = now

    def mark_handled(self, count: int) -> None:
        """Note that the listeners of the next ``count`` events have returned; they are acknowledged soon."""
        if count:
            self.inbox.mark_handled(count)
            self.ack_due = True

    def _hear_events(self, frame: bytes, now: float) -> Received | None:
        redelivered, first, count = frames.read_events(frame)
        body = EVENTS_HEAD
        if acked := frames.read_embedded_ack(frame):
            body += frames.ACK_BYTES
            if self.outbox.confirm(*acked):
                self._progress(now)
        if first and self.inbox.has_gap_before(first):
            self._ask_again()
            return None
        try:
            events = self.codec.decode(memoryview(frame)[body:])
            if len(events) != count:
                raise CodecError(f"{len(events)} events in a frame that says {count}")
        except CodecError as error:
            if first:
                # Passed over as handled: asking for it again would bring the same bytes for ever.
                self.mark_handled(self.inbox.skip(first, count))
            raise ProtocolError("undecodable", str(error)) from error
        if not first:
            return self, events, 0, False
        new = self.inbox.accept(first, events)
        self.ack_due = True
        return (self, new, len(new), redelivered) if new else None

    def _answer(self, last: int) -> None:
        if last > self.inbox.received:
            self._ask_again()
        else:
            self.ack_due = True

    def _ask_again(self) -> None:
        resume = frames.resume(self.generation, self.inbox.received, self.inbox.done)
        if resume not in self.control_frames:
            self.control_frames.append(resume)

    def _progress(self, now: float) -> None:
        self._probe_after = PROBE_DELAY_S
        self._probe_at = now + PROBE_DELAY_S if self.outbox.unconfirmed else None
