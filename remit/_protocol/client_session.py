"""Connector: the client's end of one session: say HELLO on each connection, know when the server is dead."""

from __future__ import annotations

import enum
import os
from collections import Counter, deque
from typing import Final

from remit._protocol import frames
from remit._protocol.frames import Bye, Hello, Kind, Refuse, Welcome
from remit._protocol.outbox import Outbox
from remit._protocol.session import Received, Session
from remit.codec import Codec
from remit.errors import ProtocolError
from remit.transport import SERVER, Arrival, Down, Frame, Gap, Up

__all__ = ["HEARTBEAT_INTERVAL_S", "HELLO_RETRY_S", "ClientSession", "ConnectionState"]


HEARTBEAT_INTERVAL_S: Final = 5.0
"""Seconds of silence after which a client asks whether its server is there."""
HELLO_RETRY_S: Final = 1.0
"""Seconds after which an unanswered HELLO is repeated."""
EARLY_FRAME_BYTES: Final = 64 * 1024
"""Bytes of a frame that may leave before the server has named its own limit."""


class ConnectionState(enum.Enum):
    """Where the client's end stands."""

    DISCONNECTED = "down"
    HELLO_SENT = "greeting"
    ESTABLISHED = "up"
    REFUSED = "refused"
    CLOSED = "closed"


class ClientSession:
    """The client's end. Fed with arrivals and the time; says which session has frames to send."""

    def __init__(
        self, codec: Codec, outbox: Outbox, *, max_frame: int, heartbeat: float = HEARTBEAT_INTERVAL_S
    ) -> None:
        self.session = Session(os.urandom(16), codec, outbox)
        self.state = ConnectionState.DISCONNECTED
        self.refusal: Refuse | None = None
        self.instance = b""
        """The server instance met last."""
        self.ready: deque[Received] = deque()
        """Events from the server, to be handled."""
        self.rejected: Counter[str] = Counter()
        self.disconnects = 0
        """How often a connection was lost, so that those who wait for an answer hear of it."""
        self.server_restarts = 0
        """How often a server was met that knew nothing of this session's past."""
        self.link_stale = False
        """The server was silent for longer than it promised: the link should be opened anew."""
        self._max_frame = max_frame
        self._heartbeat = heartbeat
        self._patience = 0.0
        self._early = False
        self._met = 0
        self._ping_at = float("inf")
        self._hello_at = float("inf")

    # -- arrivals ----------------------------------------------------------------------------------------------

    def handle_arrival(self, arrival: Arrival, now: float) -> None:
        """Take what the link received."""
        if isinstance(arrival, Frame):
            try:
                self._frame(arrival.data, now)
            except ProtocolError as error:
                self.rejected[error.reason] += 1
        elif isinstance(arrival, Up):
            self._greet(now)
        elif isinstance(arrival, Down):
            self._down()
        elif isinstance(arrival, Gap):
            self.session.probe_now(now)

    def _frame(self, frame: bytes, now: float) -> None:
        kind = frames.kind_of(frame)
        if self.state in (ConnectionState.REFUSED, ConnectionState.CLOSED):
            return
        if kind is Kind.WELCOME or kind is Kind.REFUSE or kind is Kind.BYE:
            self._control(frames.unpack(kind, frame), now)
        elif kind is Kind.IDENTIFY:
            if self.state is ConnectionState.ESTABLISHED or now >= self._hello_at - HELLO_RETRY_S / 2:
                self._greet(now)
        elif self.state is ConnectionState.ESTABLISHED:
            # What comes before the WELCOME may be another session's: nothing of it counts.
            self._alive(now)
            received = self.session.handle_frame(kind, frame, now)
            if received:
                self.ready.append(received)

    def _control(self, control: Hello | Welcome | Refuse | Bye, now: float) -> None:
        if isinstance(control, Welcome):
            # Only once: a repeated one must not take what came meanwhile for unheard.
            if control.generation == self.session.generation and self.state is ConnectionState.HELLO_SENT:
                self._welcomed(control, now)
        elif isinstance(control, Refuse):
            self.state, self.refusal = ConnectionState.REFUSED, control
            self._hello_at = self._ping_at = float("inf")
            self.session.disconnect()
        elif isinstance(control, Bye) and control.generation == self.session.generation:
            self._down()
            # Answered, so that the server knows that its last words were read and can leave without losing them.
            self.session.control_frames.append(frames.pack(Bye("heard", self.session.generation)))
            # It may come back on the same link without a Down that the transport can see.
            self._hello_at = now + HELLO_RETRY_S
            self.session.peer = SERVER

    def _greet(self, now: float) -> None:
        """Say HELLO; a session that no server has met yet may send events right behind it."""
        if self.state in (ConnectionState.REFUSED, ConnectionState.CLOSED):
            return
        session, outbox = self.session, self.session.outbox
        session.connect(SERVER, session.generation + 1)
        self._early = session.generation == 1
        session.frame_limit = EARLY_FRAME_BYTES
        self.state = ConnectionState.HELLO_SENT
        session.control_frames.append(
            frames.pack(
                Hello(
                    session.id,
                    session.generation,
                    self.instance,
                    outbox.oldest,
                    outbox.last,
                    session.inbox.received,
                    session.codec.name,
                    self._max_frame,
                    self._met,
                )
            )
        )
        self._hello_at = now + HELLO_RETRY_S

    def _welcomed(self, welcome: Welcome, now: float) -> None:
        session, outbox = self.session, self.session.outbox
        # One whose WELCOME was lost may have run what was sent early, unless it is the one that welcomes now.
        met = bool(self.instance) or welcome.first_generation > 1
        another = welcome.instance != self.instance and met
        if welcome.fresh and met and not self._early:
            session.inbox.restart()
            self.server_restarts += 1
        self.instance, self._met = welcome.instance, session.generation
        self._patience = welcome.liveness_timeout
        outbox.max_frame = min(outbox.max_frame, welcome.max_frame)
        session.frame_limit = None
        self.state = ConnectionState.ESTABLISHED
        self._hello_at = float("inf")
        self._alive(now)
        outbox.confirm(welcome.received, welcome.done)
        if another:
            outbox.redeliver()
        elif not self._early:
            outbox.resend_unreceived()
        self._early = False
        # What was handled meanwhile may have been acknowledged to a connection that was lost.
        session.ack_due = session.ack_due or session.inbox.received > 0

    def _down(self) -> None:
        if self.state in (ConnectionState.ESTABLISHED, ConnectionState.HELLO_SENT):
            self.state = ConnectionState.DISCONNECTED
            self.disconnects += 1
        self._early = False
        self._hello_at = self._ping_at = float("inf")
        self.session.disconnect()

    def _alive(self, now: float) -> None:
        self.session.last_received_at = now
        self._ping_at = now + self._heartbeat

    # -- sending -----------------------------------------------------------------------------------------------

    def has_sendable_events(self) -> bool:
        """Whether events wait that may leave now: `next` would return them."""
        return self._sending() and self.session.outbox.sendable(self.session.frame_limit)

    def next_frame(self) -> bytes | None:
        """Return the frame to send to `SERVER` next, or None."""
        session = self.session
        return session.next_frame() if self._sending() or session.control_frames else None

    def _sending(self) -> bool:
        return self.state is ConnectionState.ESTABLISHED or self._early

    def handle_timeouts(self, now: float) -> float:
        """Do what time demands; return the moment to come again."""
        if self.state is ConnectionState.ESTABLISHED:
            self._watch(now)
        elif now >= self._hello_at and self.session.peer is not None:
            self._greet(now)
        probe = self.session.probe(now) if self.session.peer is not None else None
        ping_at = self._ping_at if self.state is ConnectionState.ESTABLISHED else float("inf")
        ack_by = self.session.ack_deadline(now) if self._sending() else float("inf")
        return min(ping_at, self._hello_at, probe or float("inf"), ack_by)

    def set_heartbeat(self, seconds: float) -> None:
        """From now on ask after this many seconds of silence whether the server is there."""
        self._heartbeat = seconds
        self._ping_at = min(self._ping_at, self.session.last_received_at + seconds)

    def queue_bye(self, why: str = "closed") -> None:
        """End the session for good: the next frame says so."""
        if self.state is ConnectionState.ESTABLISHED:
            self.session.control_frames.append(frames.pack(Bye(why, self.session.generation)))

    def _watch(self, now: float) -> None:
        if now < self._ping_at:
            return
        self._ping_at = now + self._heartbeat
        self.session.control_frames.append(frames.ping(self.session.generation, self.session.outbox.last))
        if self._patience and now - self.session.last_received_at > self._patience:
            self.link_stale = True
