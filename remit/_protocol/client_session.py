"""Client end of a session: the HELLO on each connection, heartbeats, and the detection of a stale link.

| state        | link Up, IDENTIFY | WELCOME     | REFUSE  | link Down, BYE | time                         |
|--------------|-------------------|-------------|---------|----------------|------------------------------|
| DISCONNECTED | HELLO_SENT        |             | REFUSED |                | after BYE: HELLO_SENT        |
| HELLO_SENT   | HELLO_SENT        | ESTABLISHED | REFUSED | DISCONNECTED   | HELLO is repeated            |
| ESTABLISHED  | HELLO_SENT        |             | REFUSED | DISCONNECTED   | PING; then the link is stale |
| REFUSED      |                   |             |         |                |                              |

An empty cell leaves the state as it is. Each transition to HELLO_SENT starts another connection (generation).
"""

from __future__ import annotations

import enum
import os
from collections import Counter, deque
from typing import Final

from remit._protocol import frames
from remit._protocol.frames import BYE, IDENTIFY, REFUSE, WELCOME, Bye, Hello, Refuse, Welcome
from remit._protocol.outbox import SPARE_WITHDRAWN, Outbox
from remit._protocol.session import FOREVER, Received, Session
from remit.codec import Codec
from remit.errors import ProtocolError
from remit.transport import SERVER, Arrival, Down, Frame, Gap, Up

HEARTBEAT_INTERVAL_S: Final = 5.0
"""Seconds of silence after which a client sends PING."""
HELLO_RETRY_S: Final = 1.0
"""Seconds after which an unanswered HELLO is repeated."""
EARLY_FRAME_BYTES: Final = 64 * 1024
"""Largest frame that is sent before the server has announced its own limit."""


class ConnectionState(enum.Enum):
    """State of the client's connection."""

    DISCONNECTED = "down"
    HELLO_SENT = "greeting"
    ESTABLISHED = "up"
    REFUSED = "refused"


ESTABLISHED: Final = ConnectionState.ESTABLISHED
"""Read for each frame: on CPython 3.11 an access through the class costs 70 ns."""


class ClientSession:
    """State machine of the client. Its caller supplies arrivals and the time, and sends the frames that it returns."""

    def __init__(
        self, codec: Codec, outbox: Outbox, *, max_frame: int, heartbeat: float = HEARTBEAT_INTERVAL_S
    ) -> None:
        self.session = Session(os.urandom(16), codec, outbox)
        self.state = ConnectionState.DISCONNECTED
        self.refusal: Refuse | None = None
        self.instance = b""
        """Id of the server instance that welcomed the session last; empty before the first WELCOME."""
        self.ready: deque[Received] = deque()
        self.rejected: Counter[str] = Counter()
        self.disconnects = 0
        """Number of lost connections. When it grows, the owner fails the requests that cannot be repeated."""
        self.server_restarts = 0
        """Number of WELCOMEs from a server that does not know the earlier state of this session."""
        self.down_reason = ""
        """Why the link was last lost; empty if it never was."""
        self.link_stale = False
        """Whether the server has exceeded its liveness timeout: the owner should open another link."""
        self._max_frame = max_frame
        self._heartbeat = heartbeat
        self._liveness_timeout = 0.0
        self._may_send_early = False
        self._welcomed_generation = 0
        self._ping_at = FOREVER
        self._hello_at = FOREVER

    def handle_arrival(self, arrival: Arrival, now: float) -> None:
        """Handle an arrival of the link. Never raises: violations of the protocol are counted in `rejected`."""
        if isinstance(arrival, Frame):
            try:
                self._handle_frame(arrival.data, now)
            except ProtocolError as error:
                self.rejected[error.reason] += 1
        elif isinstance(arrival, Up):
            self._send_hello(now)
        elif isinstance(arrival, Down):
            self.down_reason = f"the connection was lost: {arrival.why}"
            self._handle_disconnect()
        elif isinstance(arrival, Gap):
            self.session.probe_now(now)

    def _handle_frame(self, frame: bytes, now: float) -> None:
        kind = frames.kind_of(frame)
        if self.state is ConnectionState.REFUSED:
            return
        if kind is WELCOME or kind is REFUSE or kind is BYE:
            self._handle_control(frames.unpack(kind, frame), now)
        elif kind is IDENTIFY:
            # In HELLO_SENT it may be the answer to a frame that was sent before the HELLO.
            if self.state is ESTABLISHED or now >= self._hello_at - HELLO_RETRY_S / 2:
                self._send_hello(now)
        elif self.state is ESTABLISHED:
            # A frame that arrives before the WELCOME may belong to another session, and is dropped.
            self._note_received(now)
            received = self.session.handle_frame(kind, frames.generation_of(frame), frame, now)
            if received is not None:
                self.ready.append(received)
                received.accept()
                if received.undecodable:
                    self.rejected["undecodable"] += received.undecodable

    def _handle_control(self, control: Hello | Welcome | Refuse | Bye, now: float) -> None:
        if isinstance(control, Welcome):
            # Only the first WELCOME counts: the numbers of a duplicate are out of date.
            if control.generation == self.session.generation and self.state is ConnectionState.HELLO_SENT:
                self._handle_welcome(control, now)
        elif isinstance(control, Refuse):
            self.state, self.refusal = ConnectionState.REFUSED, control
            self._hello_at = self._ping_at = FOREVER
            self.session.disconnect()
        elif isinstance(control, Bye) and control.generation == self.session.generation:
            self._handle_disconnect()
            # The answer shows the server that the client has read all its frames: it can close the link.
            self.session.queue_bye("heard")
            # The link may stay open without Up or Down: repeat HELLO on it, as another server may bind the location.
            self._hello_at = now + HELLO_RETRY_S
            self.session.peer = SERVER

    def _send_hello(self, now: float) -> None:
        """Start another connection. The first one of a session may send events without waiting for the WELCOME."""
        if self.state is ConnectionState.REFUSED:
            return
        session, outbox = self.session, self.session.outbox
        session.connect(SERVER, session.generation + 1)
        # The server cannot have another state of a new session, so its first events need not wait for the WELCOME:
        # that saves a short-lived child process one round trip.
        self._may_send_early = session.generation == 1
        session.frame_limit = EARLY_FRAME_BYTES
        self.state = ConnectionState.HELLO_SENT
        hello = Hello(
            session.id,
            session.generation,
            self.instance,
            oldest=outbox.done + 1,
            latest=outbox.last,
            received=session.inbox.received,
            codec=session.codec.name,
            max_frame=self._max_frame,
            welcomed_generation=self._welcomed_generation,
        )
        session.control_frames.append(frames.pack(hello))
        self._hello_at = now + HELLO_RETRY_S

    def _handle_welcome(self, welcome: Welcome, now: float) -> None:
        session, outbox = self.session, self.session.outbox
        # If the session started here after connection 1, another instance may have handled events of connection 1.
        has_met_server = bool(self.instance) or welcome.first_generation > 1
        is_another = welcome.instance != self.instance and has_met_server
        if welcome.fresh and has_met_server and not self._may_send_early:
            session.inbox = session.inbox.restart()
            self.server_restarts += 1
        self._liveness_timeout = welcome.liveness_timeout
        outbox.max_frame = min(outbox.max_frame, welcome.max_frame)
        session.frame_limit = None
        # Confirmed first, so that finished events are neither resent nor marked as redelivered.
        outbox.confirm(welcome.received, welcome.done)
        if is_another:
            outbox.redeliver()
        elif not self._may_send_early:
            outbox.resend_unreceived()
        # After the outbox: if an interrupt leaves this method before, the next WELCOME repeats all of the above.
        self.instance, self._welcomed_generation = welcome.instance, session.generation
        self.state = ESTABLISHED
        self._hello_at = FOREVER
        self._note_received(now)
        self._may_send_early = False
        # An acknowledgement may have been lost with the last connection.
        session.ack_due = session.ack_due or session.inbox.received > 0

    def _handle_disconnect(self) -> None:
        if self.state in (ESTABLISHED, ConnectionState.HELLO_SENT):
            self.state = ConnectionState.DISCONNECTED
            self.disconnects += 1
        self._may_send_early = False
        self._hello_at = self._ping_at = FOREVER
        self.session.disconnect()

    def _note_received(self, now: float) -> None:
        self.session.last_received_at = now
        self._ping_at = now + self._heartbeat

    def has_sendable_events(self) -> bool:
        """Return whether `next_frame` would return events."""
        return self._may_send_events() and self.session.outbox.sendable(self.session.frame_limit)

    def next_frame(self) -> bytes | None:
        """Return the next frame to send to `SERVER`, or None."""
        session = self.session
        if self.state is ESTABLISHED or self._may_send_early or session.control_frames:
            return session.next_frame()
        return None

    def _may_send_events(self) -> bool:
        return self.state is ESTABLISHED or self._may_send_early

    def handle_timeouts(self, now: float) -> float:
        """Repeat HELLO, probe and send heartbeats if they are due; return the time of the next call."""
        session = self.session
        if session.outbox.withdrawn > SPARE_WITHDRAWN:
            session.outbox.compact()
        established = self.state is ESTABLISHED
        if established:
            if now >= self._ping_at:
                self._ping_at = now + self._heartbeat
                session.queue_ping()
                if 0 < self._liveness_timeout < now - session.last_received_at:
                    self.link_stale = True
        elif now >= self._hello_at and session.peer is not None:
            self._send_hello(now)
        if now >= session.probe_at:
            session.probe(now)
        due = self._ping_at if established else self._hello_at
        if session.probe_at < due:
            due = session.probe_at
        if session.ack_due and session.ack_delay and self._may_send_events():
            due = min(due, session.ack_deadline(now))
        return due

    def repair(self, now: float) -> None:
        """Continue after an interrupt in any method: another connection on the same link agrees on all numbers."""
        for received in self.ready:
            received.accept()
        self.session.outbox.repair()
        self._send_hello(now)

    def set_heartbeat(self, seconds: float) -> None:
        """Change the seconds of silence after which PING is sent."""
        self._heartbeat = seconds
        self._ping_at = min(self._ping_at, self.session.last_received_at + seconds)

    def queue_bye(self, why: str = "closed") -> None:
        """Queue a BYE, which ends the session."""
        if self.state is ESTABLISHED or self.state is ConnectionState.HELLO_SENT:
            self.session.queue_bye(why)
