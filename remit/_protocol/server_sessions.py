"""Server end of all sessions: WELCOME, resumption, refusal and expiry.

| frame         | peer has no session                             | peer has a session                        |
|---------------|-------------------------------------------------|-------------------------------------------|
| HELLO         | start, resume or refuse a session (table below) | the same; an older generation is rejected |
| BYE           | ignored                                         | remove the session, keep its number       |
| AUTH_REQUEST  | REFUSE: this server has no key                  |                                           |
| AUTHENTICATED | counted in `rejected`                           |                                           |
| CANCEL        | IDENTIFY                                        | mark the request as cancelled             |
| any other     | IDENTIFY: the peer must send HELLO              | `Session.handle_frame`                    |

| session id in HELLO                   | answer                                                               |
|---------------------------------------|----------------------------------------------------------------------|
| known                                 | WELCOME; the session moves to the new connection                     |
| ended here, its number is kept        | WELCOME; a new session that continues after the last received number |
| unknown, but started at this instance | REFUSE if events are unfinished: they may have been handled already  |
| unknown                               | WELCOME; a new session                                               |
"""

from __future__ import annotations

import secrets
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from remit._protocol import frames
from remit._protocol.frames import Bye, Hello, Kind, Refuse, Welcome
from remit._protocol.outbox import Outbox
from remit._protocol.session import Inbox, Received, Session
from remit.codec import CODECS, Codec
from remit.errors import ProtocolError
from remit.transport import Arrival, Credentials, Down, Frame, Gap, Peer, Up

SESSION_TTL_S: Final = 60.0
"""Seconds that a session outlives its last connection."""
ENDED_SESSIONS_KEPT: Final = 65_536
"""Ended sessions whose last received number is kept, so that they can be resumed without repeating an event."""
SWEEP_INTERVAL_S: Final = 1.0
"""Seconds between two searches for sessions to probe or to expire."""


class ServerSessions:
    """State machine of the server. It is fed with arrivals of the link and the time; `writable` sessions have frames.

    ``outbox`` makes the outbox of a new session from its codec and the max_frame of the client. ``sees_peers`` is
    whether the transport reports `Down` for a lost client; otherwise only silence shows it.
    """

    def __init__(
        self,
        outbox: Callable[[Codec, int], Outbox],
        *,
        max_frame: int,
        liveness_timeout: float,
        session_ttl: float = SESSION_TTL_S,
        sees_peers: bool = True,
    ) -> None:
        self.instance = secrets.token_bytes(16)
        self.sessions: dict[bytes, Session] = {}
        self.ready: deque[Received] = deque()
        """Events to dispatch, in the order of their arrival."""
        self.rejected: Counter[str] = Counter()
        self.opened: deque[Session] = deque()
        """Sessions that have started since the owner emptied this queue; `closed` has those that have ended."""
        self.closed: deque[Session] = deque()
        self.cancelled_requests: deque[tuple[Session, int]] = deque()
        """Cancelled requests since the owner emptied this queue."""
        self.writable: dict[Session, None] = {}
        """Sessions that may have frames to send. An ordered set: sessions are served in the order of their events."""
        self.unknown_peer_replies: deque[tuple[Peer, bytes]] = deque()
        """Frames for peers that have no session."""
        self._outbox = outbox
        self._max_frame = max_frame
        self._liveness_timeout = liveness_timeout
        self._ttl = session_ttl
        self._sees_peers = sees_peers
        self._ended_sessions: dict[bytes, int] = {}
        self._by_peer: dict[Peer, Session] = {}
        self._attested: dict[Peer, Credentials] = {}
        self._sweep_at = 0.0

    # -- arrivals ----------------------------------------------------------------------------------------------

    def handle_arrival(self, arrival: Arrival, now: float) -> None:
        """Handle an arrival of the link. Never raises: violations of the protocol are counted in `rejected`."""
        if isinstance(arrival, Frame):
            try:
                self._handle_frame(arrival.peer, arrival.data, now)
            except ProtocolError as error:
                self.rejected[error.reason] += 1
                if error.reason == "version" and arrival.peer not in self._by_peer:
                    self._refuse(arrival.peer, "version", str(error), arrival.data)
        elif isinstance(arrival, Up):
            if arrival.credentials is not None:
                self._attested[arrival.peer] = arrival.credentials
        elif isinstance(arrival, Down):
            self._disconnect(arrival.peer, now)
        elif isinstance(arrival, Gap):
            for session in self.sessions.values():
                session.probe_now(now)

    def _handle_frame(self, peer: Peer, frame: bytes, now: float) -> None:
        kind = frames.kind_of(frame)
        session = self._by_peer.get(peer)
        if kind is Kind.HELLO or kind is Kind.BYE:
            self._handle_control(peer, session, frames.unpack(kind, frame), now)
        elif session is None or frames.generation_of(frame) > session.generation:
            self._handle_unknown_peer(peer, kind, frame)
        elif kind is Kind.CANCEL:
            self._cancel_request(session, frames.read_cancel(frame), now)
        else:
            self.writable[session] = None
            received = session.handle_frame(kind, frame, now)
            if received:
                self.ready.append(received)

    def _handle_unknown_peer(self, peer: Peer, kind: Kind, frame: bytes) -> None:
        """Ask a peer without a session for HELLO; refuse it if it uses a key, because this server has none."""
        if kind is Kind.AUTH_REQUEST or kind is Kind.AUTHENTICATED:
            self.rejected["keyed"] += 1
        if kind is Kind.AUTH_REQUEST:
            self._refuse(peer, "keyed", "this server has no key", frame)
        elif kind is not Kind.AUTHENTICATED:
            self.unknown_peer_replies.append((peer, frames.identify()))

    def _cancel_request(self, session: Session, request: int, now: float) -> None:
        session.last_received_at = now
        session.cancelled_requests.append(request)
        self.cancelled_requests.append((session, request))

    def _handle_control(
        self, peer: Peer, session: Session | None, control: Hello | Welcome | Refuse | Bye, now: float
    ) -> None:
        if isinstance(control, Hello):
            self._handle_hello(peer, control, now)
        elif session is not None and isinstance(control, Bye) and control.generation == session.generation:
            # Its number is kept: a frame that is still in flight must not start the session again and repeat an event.
            self._keep_number(session)
            self._remove_session(session)

    def _handle_hello(self, peer: Peer, hello: Hello, now: float) -> None:
        codec = CODECS.get(hello.codec)
        if codec is None:
            self._refuse(peer, "codec", f"this server has no codec {hello.codec!r}")
            return
        session = self.sessions.get(hello.session)
        if session is not None and hello.generation < session.generation:
            self.rejected["stale"] += 1
            return
        if session is None:
            received = self._ended_sessions.pop(hello.session, None)
            if received is None and hello.instance == self.instance and hello.latest >= hello.oldest:
                self._refuse(
                    peer,
                    "expired",
                    "the client was disconnected for longer than the server keeps sessions (session_ttl)",
                )
                return
            session = self._start_session(hello, codec, hello.oldest - 1 if received is None else received)
        self._attach(session, peer, hello.generation, now)
        # If an earlier WELCOME to this session was lost, the client's counters still belong to another session.
        fresh = hello.instance != self.instance or hello.welcomed_generation < session.first_generation
        if not fresh:
            session.outbox.confirm(hello.received, session.outbox.done)
        session.outbox.resend_unreceived()
        # Before anything else on this connection: the client drops frames that precede the WELCOME.
        session.control_frames.appendleft(self._welcome(session, fresh=fresh))

    def _start_session(self, hello: Hello, codec: Codec, received: int) -> Session:
        session = Session(hello.session, codec, self._outbox(codec, hello.max_frame))
        session.inbox = Inbox(received)
        session.first_generation = hello.generation
        self.sessions[hello.session] = session
        self.opened.append(session)
        return session

    def _attach(self, session: Session, peer: Peer, generation: int, now: float) -> None:
        if session.peer is not None:
            self._by_peer.pop(session.peer, None)
        other = self._by_peer.get(peer)  # A client process may start another session on the same link.
        if other is not None and other is not session:
            other.disconnect()
        session.connect(peer, generation)
        session.last_received_at = now
        session.credentials = self._attested.get(peer)
        self._by_peer[peer] = session
        self.writable[session] = None

    def _welcome(self, session: Session, *, fresh: bool) -> bytes:
        inbox = session.inbox
        return frames.pack(
            Welcome(
                self.instance,
                session.generation,
                inbox.received,
                inbox.done,
                fresh,
                self._max_frame,
                self._liveness_timeout,
                session.first_generation,
            )
        )

    def _refuse(self, peer: Peer, reason: str, detail: str, frame: bytes = b"") -> None:
        self.unknown_peer_replies.append((peer, frames.pack(Refuse(reason, detail, frames.echo_of(frame)))))

    def _disconnect(self, peer: Peer, now: float) -> None:
        self._attested.pop(peer, None)
        session = self._by_peer.pop(peer, None)
        if session is not None:
            session.disconnect()
            session.last_received_at = now

    def _may_be_gone(self, session: Session) -> bool:
        return session.peer is None or not self._sees_peers

    def _keep_number(self, session: Session) -> None:
        # A dict keeps the order of insertion, so the session that ended first is dropped first.
        while len(self._ended_sessions) >= ENDED_SESSIONS_KEPT:
            del self._ended_sessions[next(iter(self._ended_sessions))]
        self._ended_sessions[session.id] = session.inbox.received

    def _remove_session(self, session: Session) -> None:
        self.sessions.pop(session.id, None)
        self.writable.pop(session, None)
        if session.peer is not None:
            self._by_peer.pop(session.peer, None)
        self.closed.append(session)

    # -- sending -----------------------------------------------------------------------------------------------

    def peer_gone(self, session: Session, now: float) -> None:
        """Handle `Sent.GONE`: the transport has no connection to the peer of this session."""
        if session.peer is not None:
            self._disconnect(session.peer, now)

    def handle_timeouts(self, now: float, *, drained: bool) -> float:
        """Probe and expire sessions; return when to call again.

        A session expires only if the link was ``drained`` and its events are handled: while a server is not ticked,
        the frames of its clients wait in the link, and silence means nothing.
        """
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_INTERVAL_S
            for session in list(self.sessions.values()):
                if (
                    drained
                    and now - session.last_received_at > self._ttl
                    and self._may_be_gone(session)
                    and session.inbox.all_handled
                ):
                    self._keep_number(session)
                    self._remove_session(session)
                elif session.peer is not None and session.probe(now) is not None and session.control_frames:
                    self.writable[session] = None
        return self._sweep_at

    @property
    def has_clients(self) -> bool:
        """Whether a client is connected, as far as is known."""
        return bool(self._by_peer)

    @property
    def has_unreceived(self) -> bool:
        """Whether a connected client has not received all its events."""
        return any(session.outbox.has_unreceived for session in self._by_peer.values())

    def queue_bye(self, why: str) -> None:
        """Queue a BYE for each client."""
        for session in self._by_peer.values():
            session.control_frames.append(frames.pack(Bye(why, session.generation)))
            self.writable[session] = None
