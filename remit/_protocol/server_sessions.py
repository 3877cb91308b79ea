"""Acceptor: the server's end of many sessions: welcome, resume, refuse, forget."""

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

__all__ = ["SESSION_TTL_S", "SWEEP_INTERVAL_S", "ServerSessions"]


SESSION_TTL_S: Final = 60.0
"""Seconds for which a session outlives its last connection."""
ENDED_SESSIONS_KEPT: Final = 65_536
"""Forgotten sessions of which one number is still known, so that they can go on exactly where they were."""
SWEEP_INTERVAL_S: Final = 1.0
"""Seconds between two looks for sessions to probe or to forget."""


class ServerSessions:
    """The server's end. Fed with arrivals and the time; says which sessions have frames to send.

    ``outbox`` makes the outbox of a new session, given its codec and the client's ``max_frame``.
    """

    def __init__(
        self,
        outbox: Callable[[Codec, int], Outbox],
        *,
        max_frame: int,
        patience: float,
        session_ttl: float = SESSION_TTL_S,
        sees_peers: bool = True,
    ) -> None:
        self.instance = secrets.token_bytes(16)
        self.sessions: dict[bytes, Session] = {}
        self.ready: deque[Received] = deque()
        """Events to be handled, in the order of their arrival."""
        self.rejected: Counter[str] = Counter()
        self.opened: deque[Session] = deque()
        """Sessions begun since somebody looked; `closed` likewise for those that ended."""
        self.closed: deque[Session] = deque()
        self.cancelled_requests: deque[tuple[Session, int]] = deque()
        """Requests that nobody waits for any more, since somebody looked."""
        self.writable: dict[Session, None] = {}
        """Sessions that may have something to send."""
        self.unknown_peer_replies: deque[tuple[Peer, bytes]] = deque()
        """Answers to peers that have no session."""
        self._outbox = outbox
        self._max_frame = max_frame
        self._patience = patience
        self._ttl = session_ttl
        self._sees_peers = sees_peers
        self._remembered: dict[bytes, int] = {}
        self._by_peer: dict[Peer, Session] = {}
        self._attested: dict[Peer, Credentials] = {}
        self._sweep_at = 0.0

    # -- arrivals ----------------------------------------------------------------------------------------------

    def handle_arrival(self, arrival: Arrival, now: float) -> None:
        """Take what the link received. Never raises: what breaks the protocol is counted in `rejected`."""
        if isinstance(arrival, Frame):
            try:
                self._frame(arrival.peer, arrival.data, now)
            except ProtocolError as error:
                self.rejected[error.reason] += 1
                if error.reason == "version" and arrival.peer not in self._by_peer:
                    self._refuse(arrival.peer, "version", str(error), arrival.data)
        elif isinstance(arrival, Up):
            if arrival.credentials is not None:
                self._attested[arrival.peer] = arrival.credentials
        elif isinstance(arrival, Down):
            self._down(arrival.peer, now)
        elif isinstance(arrival, Gap):
            for session in self.sessions.values():
                session.probe_now(now)

    def _frame(self, peer: Peer, frame: bytes, now: float) -> None:
        kind = frames.kind_of(frame)
        session = self._by_peer.get(peer)
        if kind is Kind.HELLO or kind is Kind.BYE:
            self._control(peer, session, frames.unpack(kind, frame), now)
        elif session is None or frames.generation_of(frame) > session.generation:
            self._unknown(peer, kind, frame)
        elif kind is Kind.CANCEL:
            self._cancelled(session, frames.read_cancel(frame), now)
        else:
            self.writable[session] = None
            received = session.handle_frame(kind, frame, now)
            if received:
                self.ready.append(received)

    def _unknown(self, peer: Peer, kind: Kind, frame: bytes) -> None:
        """Hear somebody without a session: have him say who he is, unless he signs what nobody here can check."""
        if kind is Kind.AUTH_REQUEST or kind is Kind.AUTHENTICATED:
            self.rejected["keyed"] += 1
        if kind is Kind.AUTH_REQUEST:
            self._refuse(peer, "keyed", "this server has no key", frame)
        elif kind is not Kind.AUTHENTICATED:
            self.unknown_peer_replies.append((peer, frames.identify()))

    def _cancelled(self, session: Session, request: int, now: float) -> None:
        session.last_received_at = now
        session.cancelled_requests.append(request)
        self.cancelled_requests.append((session, request))

    def _control(
        self, peer: Peer, session: Session | None, control: Hello | Welcome | Refuse | Bye, now: float
    ) -> None:
        if isinstance(control, Hello):
            self._greeted(peer, control, now)
        elif session is not None and isinstance(control, Bye) and control.generation == session.generation:
            # Remembered, so that nothing which is still on its way could begin it again and run once more.
            self._remember(session)
            self._forget(session)

    def _greeted(self, peer: Peer, hello: Hello, now: float) -> None:
        codec = CODECS.get(hello.codec)
        if codec is None:
            self._refuse(peer, "codec", f"no codec {hello.codec!r} here")
            return
        session = self.sessions.get(hello.session)
        if session is not None and hello.generation < session.generation:
            self.rejected["stale"] += 1
            return
        if session is None:
            received = self._remembered.pop(hello.session, None)
            if received is None and hello.instance == self.instance and hello.latest >= hello.oldest:
                self._refuse(peer, "expired", "it was away for longer than the server remembers sessions")
                return
            session = self._open(hello, codec, hello.oldest - 1 if received is None else received)
        self._attach(session, peer, hello.generation, now)
        # An earlier WELCOME to this very session may have been lost: then what the client counts is another's still.
        fresh = hello.instance != self.instance or hello.welcomed_generation < session.first_generation
        if not fresh:
            session.outbox.confirm(hello.received, session.outbox.done)
        session.outbox.resend_unreceived()
        session.control_frames.appendleft(self._welcome(session, fresh=fresh))

    def _open(self, hello: Hello, codec: Codec, received: int) -> Session:
        session = Session(hello.session, codec, self._outbox(codec, hello.max_frame))
        session.inbox = Inbox(received)
        session.first_generation = hello.generation
        self.sessions[hello.session] = session
        self.opened.append(session)
        return session

    def _attach(self, session: Session, peer: Peer, generation: int, now: float) -> None:
        if session.peer is not None:
            self._by_peer.pop(session.peer, None)
        stranger = self._by_peer.get(peer)
        if stranger is not None and stranger is not session:
            stranger.disconnect()
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
                self._patience,
                session.first_generation,
            )
        )

    def _refuse(self, peer: Peer, reason: str, detail: str, frame: bytes = b"") -> None:
        self.unknown_peer_replies.append((peer, frames.pack(Refuse(reason, detail, frames.echo_of(frame)))))

    def _down(self, peer: Peer, now: float) -> None:
        self._attested.pop(peer, None)
        session = self._by_peer.pop(peer, None)
        if session is not None:
            session.disconnect()
            session.last_received_at = now

    def _away(self, session: Session) -> bool:
        return session.peer is None or not self._sees_peers

    def _remember(self, session: Session) -> None:
        while len(self._remembered) >= ENDED_SESSIONS_KEPT:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[session.id] = session.inbox.received

    def _forget(self, session: Session) -> None:
        self.sessions.pop(session.id, None)
        self.writable.pop(session, None)
        if session.peer is not None:
            self._by_peer.pop(session.peer, None)
        self.closed.append(session)

    # -- sending -----------------------------------------------------------------------------------------------

    def peer_gone(self, session: Session, now: float) -> None:
        """The transport says that the session's peer is not there."""
        if session.peer is not None:
            self._down(session.peer, now)

    def handle_timeouts(self, now: float, *, drained: bool) -> float:
        """Do what time demands; return the moment to come again.

        Sessions are forgotten only when the link was ``drained`` and all that they brought has been handled: a
        server that was not ticked has not heard what its clients said meanwhile.
        """
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_INTERVAL_S
            for session in list(self.sessions.values()):
                if (
                    drained
                    and now - session.last_received_at > self._ttl
                    and self._away(session)
                    and session.inbox.all_handled
                ):
                    self._remember(session)
                    self._forget(session)
                elif session.peer is not None and session.probe(now) is not None and session.control_frames:
                    self.writable[session] = None
        return self._sweep_at

    @property
    def has_clients(self) -> bool:
        """Whether any client is connected, as far as is known."""
        return bool(self._by_peer)

    @property
    def has_unreceived(self) -> bool:
        """Whether a client that is connected has not received all that was meant for it."""
        return any(session.outbox.has_unreceived for session in self._by_peer.values())

    def queue_bye(self, why: str) -> None:
        """Tell every client that this server ends."""
        for session in self._by_peer.values():
            session.control_frames.append(frames.pack(Bye(why, session.generation)))
            self.writable[session] = None
