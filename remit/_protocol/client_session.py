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

__all__ = ["HEARTBEAT", "HELLO_AGAIN", "ClientSession", "ConnectionState"]


HEARTBEAT: Final = 5.0
"""Seconds of silence after which a client asks whether its server is there."""
HELLO_AGAIN: Final = 1.0
"""Seconds after which an unanswered HELLO is repeated."""
EARLY_FRAME: Final = 64 * 1024
"""Bytes of a frame that may leave before the server has named its own limit."""


class ConnectionState(enum.Enum):
    """Where the client's end stands."""

    DOWN = "down"
    GREETING = "greeting"
    UP = "up"
    REFUSED = "refused"
    CLOSED = "closed"


class ClientSession:
    """The client's end. Fed with arrivals and the time; says which session has frames to send."""

    def __init__(self, codec: Codec, outbox: Outbox, *, max_frame: int, heartbeat: float = HEARTBEAT) -> None:
        self.session = Session(os.urandom(16), codec, outbox)
        self.state = ConnectionState.DOWN
        self.refusal: Refuse | None = None
        self.instance = b""
        """The server instance met last."""
        self.ready: deque[Received] = deque()
        """Events from the server, to be handled."""
        self.rejected: Counter[str] = Counter()
        self.losses = 0
        """How often a connection was lost, so that those who wait for an answer hear of it."""
        self.renewals = 0
        """How often a server was met that knew nothing of this session's past."""
        self.suspect = False
        """The server was silent for longer than it promised: the link should be opened anew."""
        self._max_frame = max_frame
        self._heartbeat = heartbeat
        self._patience = 0.0
        self._early = False
        self._met = 0
        self._ping_at = float("inf")
        self._hello_at = float("inf")

    # -- arrivals ----------------------------------------------------------------------------------------------

    def arrived(self, arrival: Arrival, now: float) -> None:
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
        elif kind is Kind.WHO:
            if self.state is ConnectionState.UP or now >= self._hello_at - HELLO_AGAIN / 2:
                self._greet(now)
        elif self.state is ConnectionState.UP:
            # What comes before the WELCOME may be another session's: nothing of it counts.
            self._alive(now)
            received = self.session.hear(kind, frame, now)
            if received:
                self.ready.append(received)

    def _control(self, control: Hello | Welcome | Refuse | Bye, now: float) -> None:
        if isinstance(control, Welcome):
            # Only once: a repeated one must not take what came meanwhile for unheard.
            if control.generation == self.session.generation and self.state is ConnectionState.GREETING:
                self._welcomed(control, now)
        elif isinstance(control, Refuse):
            self.state, self.refusal = ConnectionState.REFUSED, control
            self._hello_at = self._ping_at = float("inf")
            self.session.disconnect()
        elif isinstance(control, Bye) and control.generation == self.session.generation:
            self._down()
            # Answered, so that the server knows that its last words were read and can leave without losing them.
            self.session.control.append(frames.pack(Bye("heard", self.session.generation)))
            # It may come back on the same link without a Down that the transport can see.
            self._hello_at = now + HELLO_AGAIN
            self.session.peer = SERVER

    def _greet(self, now: float) -> None:
        """Say HELLO; a session that no server has met yet may send events right behind it."""
        if self.state in (ConnectionState.REFUSED, ConnectionState.CLOSED):
            return
        session, outbox = self.session, self.session.outbox
        session.connect(SERVER, session.generation + 1)
        self._early = session.generation == 1
        session.limit = EARLY_FRAME
        self.state = ConnectionState.GREETING
        session.control.append(
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
        self._hello_at = now + HELLO_AGAIN

    def _welcomed(self, welcome: Welcome, now: float) -> None:
        session, outbox = self.session, self.session.outbox
        # One whose WELCOME was lost may have run what was sent early, unless it is the one that welcomes now.
        met = bool(self.instance) or welcome.since > 1
        another = welcome.instance != self.instance and met
        if welcome.fresh and met and not self._early:
            session.inbox.restart()
            self.renewals += 1
        self.instance, self._met = welcome.instance, session.generation
        self._patience = welcome.patience
        outbox.max_frame = min(outbox.max_frame, welcome.max_frame)
        session.limit = None
        self.state = ConnectionState.UP
        self._hello_at = float("inf")
        self._alive(now)
        outbox.confirm(welcome.received, welcome.done)
        if another:
            outbox.redeliver()
        elif not self._early:
            outbox.rewind()
        self._early = False
        # What was handled meanwhile may have been acknowledged to a connection that was lost.
        session.ack_due = session.ack_due or session.inbox.received > 0

    def _down(self) -> None:
        if self.state in (ConnectionState.UP, ConnectionState.GREETING):
            self.state = ConnectionState.DOWN
            self.losses += 1
        self._early = False
        self._hello_at = self._ping_at = float("inf")
        self.session.disconnect()

    def _alive(self, now: float) -> None:
        self.session.heard = now
        self._ping_at = now + self._heartbeat

    # -- sending -----------------------------------------------------------------------------------------------

    def sendable(self) -> bool:
        """Whether events wait that may leave now: `next` would return them."""
        return self._sending() and self.session.outbox.sendable(self.session.limit)

    def next(self) -> bytes | None:
        """Return the frame to send to `SERVER` next, or None."""
        session = self.session
        return session.next() if self._sending() or session.control else None

    def _sending(self) -> bool:
        return self.state is ConnectionState.UP or self._early

    def due(self, now: float) -> float:
        """Do what time demands; return the moment to come again."""
        if self.state is ConnectionState.UP:
            self._watch(now)
        elif now >= self._hello_at and self.session.peer is not None:
            self._greet(now)
        probe = self.session.probe(now) if self.session.peer is not None else None
        ping_at = self._ping_at if self.state is ConnectionState.UP else float("inf")
        ack_by = self.session.ack_by(now) if self._sending() else float("inf")
        return min(ping_at, self._hello_at, probe or float("inf"), ack_by)

    def beat(self, seconds: float) -> None:
        """From now on ask after this many seconds of silence whether the server is there."""
        self._heartbeat = seconds
        self._ping_at = min(self._ping_at, self.session.heard + seconds)

    def bye(self, why: str = "closed") -> None:
        """End the session for good: the next frame says so."""
        if self.state is ConnectionState.UP:
            self.session.control.append(frames.pack(Bye(why, self.session.generation)))

    def _watch(self, now: float) -> None:
        if now < self._ping_at:
            return
        self._ping_at = now + self._heartbeat
        self.session.control.append(frames.ping(self.session.generation, self.session.outbox.last))
        if self._patience and now - self.session.heard > self._patience:
            self.suspect = True
