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
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Container, Iterator
from typing import Final

from remit._protocol import frames
from remit._protocol.frames import BYE, CANCEL, EVENTS, HELLO, IDENTIFY, Bye, FrameKind, Hello, Refuse, Welcome
from remit._protocol.outbox import UNBOUNDED, Outbox
from remit._protocol.session import Inbox, Received, Session
from remit.codec import CODECS, Codec
from remit.errors import ProtocolError
from remit.transport import Arrival, Credentials, Down, Frame, Gap, Peer, Up

SESSION_TTL_S: Final = 60.0
"""Seconds that a session outlives its last connection."""
ENDED_SESSIONS_KEPT: Final = 65_536
"""Ended sessions whose last received number is kept, so that they can be resumed without repeating an event."""
TOTAL_FACTOR: Final = 4
"""Most bytes that wait for all clients together, as a multiple of the most bytes for one client."""
SWEEP_INTERVAL_S: Final = 1.0
"""Seconds between two searches for sessions to probe or to expire."""


class ServerSessions:
    """State machine of the server. Its caller supplies arrivals and the time, and sends frames of `writable`."""

    def __init__(
        self,
        outbox: Callable[[Codec, int], Outbox],
        *,
        max_frame: int,
        liveness_timeout: float,
        session_ttl: float = SESSION_TTL_S,
        sees_peers: bool = True,
        queue_bytes: int = UNBOUNDED,
    ) -> None:
        self.instance = secrets.token_bytes(16)
        self.sessions: dict[bytes, Session] = {}
        self.ready: deque[Received] = deque()
        self.rejected: Counter[str] = Counter()
        self.closed: deque[tuple[Session, int]] = deque()
        """Sessions that have ended since the owner emptied this queue, each with the value of `enqueued` then."""
        self.enqueued = 0
        """Number of frames that were appended to `ready`."""
        self.dropped = 0
        """Number of events without a number that were dropped because too many bytes waited for dispatch."""
        self._queue_bytes = queue_bytes
        self._waiting_bytes = 0
        """At least `waiting_bytes`: what has arrived since it was measured is added, and nothing is subtracted."""
        self._measured_at = 0.0
        self._paused: dict[Session, None] = {}
        self.cancelled_requests: deque[tuple[Session, int]] = deque()
        self.writable: dict[Session, None] = {}
        """Sessions that may have frames to send. An ordered set: sessions are served in the order of their events."""
        self.unknown_peer_replies: deque[tuple[Peer, bytes]] = deque()
        self._outbox = outbox
        """Makes the outbox of a session from its codec and the max_frame of the client."""
        self._max_frame = max_frame
        self._liveness_timeout = liveness_timeout
        self._ttl = session_ttl
        # If False, the transport reports no `Down` for a lost client: only silence shows the loss.
        self._sees_peers = sees_peers
        self._ended_sessions: OrderedDict[bytes, int] = OrderedDict()
        self._by_peer: dict[Peer, Session] = {}
        self._attested: dict[Peer, Credentials] = {}
        self._sweep_at = 0.0

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
        if kind is HELLO or kind is BYE:
            control = frames.unpack(kind, frame)
            if isinstance(control, Hello):
                self._handle_hello(peer, control, now)
            elif session is not None and isinstance(control, Bye) and control.generation == session.generation:
                self._end_session(session)
        elif session is None or (generation := frames.generation_of(frame)) > session.generation:
            self._handle_unknown_peer(peer, kind, frame)
        elif kind is CANCEL:
            (request,) = frames.unpack_numbers(kind, frame)
            session.last_received_at = now
            session.cancelled_requests.append(request)
            self.cancelled_requests.append((session, request))
        else:
            self.writable[session] = None
            if kind is EVENTS and (self._paused or self._waiting_bytes > self._queue_bytes):
                self._check_room(session, frame, now)
            received = session.handle_frame(kind, generation, frame, now)
            if received is not None:
                self.ready.append(received)
                # Second: another thread may report ended sessions now, and must not count a frame that is not there.
                self.enqueued += 1
                self._waiting_bytes += received.end - session.inbox.received_bytes
                received.accept()
                if received.undecodable:
                    self.rejected["undecodable"] += received.undecodable

    @property
    def waiting_bytes(self) -> int:
        """Size of the events that are received and not handled. O(n) in the number of sessions. From any thread."""
        ended = [session for session, _ in list(self.closed)]
        return sum(session.inbox.waiting_bytes for session in {*self.sessions.values(), *ended})

    def _check_room(self, session: Session, frame: bytes, now: float) -> None:
        """Pause a session if too many bytes wait for dispatch. Count the events that are dropped, and not only late."""
        if now > self._measured_at:  # Once for all frames of one exchange.
            self._measured_at, self._waiting_bytes = now, self.waiting_bytes
        if session.inbox.waiting_bytes > self._queue_bytes or self._waiting_bytes > TOTAL_FACTOR * self._queue_bytes:
            self._paused[session] = None
            session.paused = True
        if session.paused:
            _, first, count, _ = frames.read_events(frame)
            self.dropped += 0 if first else count

    def _resume_sessions(self) -> None:
        """Request what paused sessions have dropped, once half of the room is free: each request is for a window."""
        most = self._queue_bytes // 2
        self._waiting_bytes = self.waiting_bytes
        for session in list(self._paused):
            if session.inbox.waiting_bytes <= most and self._waiting_bytes <= TOTAL_FACTOR * most:
                session.request_resend()
                self.writable[session] = None
                session.paused = False
                del self._paused[session]

    def _handle_unknown_peer(self, peer: Peer, kind: FrameKind, frame: bytes) -> None:
        """Ask for HELLO: the session, or this connection of it, is unknown. Refuse a peer that uses a key."""
        if kind is FrameKind.AUTH_REQUEST or kind is FrameKind.AUTHENTICATED:
            self.rejected["keyed"] += 1
        if kind is FrameKind.AUTH_REQUEST:
            self._refuse(peer, "keyed", "this server has no key", frame)
        elif kind is not FrameKind.AUTHENTICATED:
            self.unknown_peer_replies.append((peer, frames.head(IDENTIFY)))

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
            received = self._ended_sessions.get(hello.session)
            if received is None and hello.instance == self.instance and hello.latest >= hello.oldest:
                why = "the client was disconnected for longer than the server keeps sessions (session_ttl)"
                self._refuse(peer, "expired", why)
                return
            session = self._start_session(hello, codec, hello.oldest - 1 if received is None else received)
        self._attach(session, peer, hello.generation, now)
        # If an earlier WELCOME to this session was lost, the client's counters still belong to another session.
        fresh = hello.instance != self.instance or hello.welcomed_generation < session.first_generation
        if not fresh:
            session.outbox.confirm(hello.received, session.outbox.done)
        session.outbox.resend_unreceived()
        welcome = Welcome(
            self.instance,
            session.generation,
            session.inbox.received,
            session.inbox.done,
            fresh,
            self._max_frame,
            self._liveness_timeout,
            session.first_generation,
        )
        # The first frame of this connection: the client drops frames that precede the WELCOME.
        session.control_frames.appendleft(frames.pack(welcome))

    def _start_session(self, hello: Hello, codec: Codec, received: int) -> Session:
        session = Session(hello.session, codec, self._outbox(codec, hello.max_frame))
        session.inbox = Inbox(received)
        session.first_generation = hello.generation
        self.sessions[hello.session] = session
        self._ended_sessions.pop(hello.session, None)
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

    def _refuse(self, peer: Peer, reason: str, detail: str, frame: bytes = b"") -> None:
        self.unknown_peer_replies.append((peer, frames.pack(Refuse(reason, detail, frames.echo_of(frame)))))

    def _disconnect(self, peer: Peer, now: float) -> None:
        self._attested.pop(peer, None)
        session = self._by_peer.pop(peer, None)
        if session is not None:
            session.disconnect()
            session.last_received_at = now

    def _end_session(self, session: Session) -> None:
        # The received number is kept: a frame in flight must not start the session again and repeat an event.
        # The session that ended first is dropped first. A plain dict would search for it.
        while len(self._ended_sessions) >= ENDED_SESSIONS_KEPT:
            self._ended_sessions.popitem(last=False)
        self._ended_sessions[session.id] = session.inbox.received
        # First: an end that is interrupted is reported, and repeated later.
        self.closed.append((session, self.enqueued))
        self.sessions.pop(session.id, None)
        self.writable.pop(session, None)
        self._paused.pop(session, None)
        if session.peer is not None:
            self._by_peer.pop(session.peer, None)

    def pop_closed(self, dispatching: Container[Session]) -> Iterator[Session]:
        """Remove and yield the ended sessions, in the order of their ends, of which no event waits.

        ``dispatching`` has the sessions whose events have been taken from `ready`, but are not handled yet.
        """
        blocked = 0
        while len(self.closed) > blocked and self.closed[blocked][1] <= self.enqueued - len(self.ready):
            session = self.closed[blocked][0]
            if session in dispatching:
                blocked += 1
            else:
                # Removed after the caller has handled it: after an interrupt in between it is yielded again.
                yield session
                del self.closed[blocked]

    def handle_timeouts(self, now: float, *, drained: bool) -> float:
        """Probe and expire sessions; return the time of the next call. ``drained``: the link was read until empty."""
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_INTERVAL_S
            self._waiting_bytes = self.waiting_bytes
            for session in list(self.sessions.values()):
                # While a server is not ticked, frames of its clients wait in the link, and silence means nothing.
                expired = drained and now - session.last_received_at > self._ttl
                may_be_gone = session.peer is None or not self._sees_peers
                if expired and may_be_gone and session.inbox.done == session.inbox.received:
                    self._end_session(session)
                elif session.peer is not None:
                    session.probe(now)
                    if session.control_frames:
                        self.writable[session] = None
        if self._paused:
            self._resume_sessions()
        return self._sweep_at

    def repair(self, now: float) -> None:
        """Continue after an interrupt in any method, as after a `Gap`."""
        for received in self.ready:
            received.accept()
        self.enqueued = len(self.ready)
        self.closed = deque((session, self.enqueued) for session, _ in self.closed)
        sessions = list(self.sessions.values())
        self._by_peer = {session.peer: session for session in sessions if session.peer is not None}
        for session in self._by_peer.values():
            session.repair(now)
            session.queue_ping()  # If its `Down` was lost, the send fails.
            self.writable[session] = None

    @property
    def has_clients(self) -> bool:
        """Whether a client is connected, unless the transport has not reported its loss yet."""
        return bool(self._by_peer)

    @property
    def has_unreceived(self) -> bool:
        """Whether a connected client has not received all its events."""
        return any(session.outbox.has_unreceived for session in self._by_peer.values())

    def queue_bye(self, why: str) -> None:
        """Queue a BYE for each client."""
        for session in self._by_peer.values():
            session.queue_bye(why)
            self.writable[session] = None
