"""Keyed: around any other transport where both ends share a key: what is not signed, or not fresh, is not let in.

It authenticates, and hides nothing. What it costs is paid where a key is given, and nowhere else: without one no frame
passes through here.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from remit._protocol.auth import OVERHEAD, ClientAuth, ServerAuth, SharedKey
from remit._protocol.client_session import ClientSession
from remit._protocol.server_sessions import ServerSessions
from remit.location import Location
from remit.transport import SERVER, Arrival, Capabilities, Down, Frame, Link, Peer, Sent, Transport, Up, Wakeable

__all__ = ["AuthenticatedClientLink", "AuthenticatedServerLink", "AuthenticatedTransport", "count_with", "signing"]


logger = logging.getLogger("remit")

LOOKED_AT: Final = 64
"""Frames that are looked at in one `receive` and not let in, before whoever receives has another turn."""
SMALLEST: Final = 2
"""By how much the smallest frames of events grow, for backends that bound the bytes under way."""
TOLD: Final = 60.0
"""Seconds between two lines in the log about frames that a server did not let in."""


class AuthenticatedTransport:
    """Another transport, whose links sign and check. ``rejected`` counts what they did not let in, by reason."""

    def __init__(self, transport: Transport, key: bytes) -> None:
        self.capabilities = _lessened(transport.capabilities)
        self.options: Mapping[str, Callable[[str], Any]] = transport.options
        self.rejected: Counter[str] = Counter()
        self._transport = transport
        self._secret = SharedKey(key)

    def bind(self, location: Location) -> AuthenticatedServerLink:
        """Open the server's end. Raises what the wrapped transport does."""
        return AuthenticatedServerLink(self._transport.bind(location), ServerAuth(self._secret, self.rejected))

    def connect(self, location: Location) -> AuthenticatedClientLink:
        """Open the client's end. Raises what the wrapped transport does."""
        return AuthenticatedClientLink(self._transport.connect(location), ClientAuth(self._secret, self.rejected))


class _AuthenticatedLink:
    """A link around another one, which itself knows its thread and its process, and refuses all others."""

    def __init__(self, link: Link) -> None:
        self.location = link.location
        self.capabilities = _lessened(link.capabilities)
        self._link = link

    @property
    def owner(self) -> int:
        """Ident of the thread that may use the link."""
        return self._link.owner

    @owner.setter
    def owner(self, thread: int) -> None:
        self._link.owner = thread

    def receive(self) -> Arrival | None:
        """Return what arrived next and was let in, or None. Never blocks."""
        for _ in range(LOOKED_AT):
            arrival = self._link.receive()
            if arrival is None:
                return None
            passed = self._let_in(arrival)
            if passed is not None:
                return passed
        return None

    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        """Return after ``timeout`` seconds, or earlier."""
        self._link.wait(timeout, waker)

    def close(self, linger: float) -> None:
        """End the link within ``linger`` seconds."""
        self._link.close(linger)

    def _let_in(self, arrival: Arrival) -> Arrival | None:
        """Return what the machine above is to hear of; None: nothing."""
        raise NotImplementedError


class AuthenticatedClientLink(_AuthenticatedLink):
    """The client's end."""

    def __init__(self, link: Link, guard: ClientAuth) -> None:
        super().__init__(link)
        self._guard = guard

    def send(self, peer: Peer, frame: bytes) -> Sent:
        """Offer one frame; it is FULL until the server has admitted us. Raises FrameTooLarge."""
        sealed = self._guard.seal(frame)
        if sealed is None or not self._first_left():
            return Sent.FULL
        sent = self._link.send(peer, sealed)
        if sent is Sent.ACCEPTED:
            self._guard.sent()
        return sent

    def _first_left(self) -> bool:
        first = self._guard.first
        if first is not None and self._link.send(SERVER, first) is Sent.ACCEPTED:
            self._guard.first = None
        return self._guard.first is None

    def _let_in(self, arrival: Arrival) -> Arrival | None:
        if not isinstance(arrival, Frame):
            if isinstance(arrival, Up | Down):
                self._guard.leave()
            return arrival
        frame = self._guard.heard(arrival.data)
        self._first_left()
        return None if frame is None else Frame(arrival.peer, frame)


class AuthenticatedServerLink(_AuthenticatedLink):
    """The server's end."""

    def __init__(self, link: Link, guard: ServerAuth) -> None:
        super().__init__(link)
        self._guard = guard
        self._told_at = -TOLD
        self._told: Counter[str] = Counter()

    def send(self, peer: Peer, frame: bytes) -> Sent:
        """Offer one frame. GONE where there is no channel: its client will greet again. Raises FrameTooLarge."""
        sealed = self._guard.seal(peer, frame)
        if sealed is None:
            return Sent.GONE
        sent = self._link.send(peer, sealed)
        if sent is Sent.ACCEPTED:
            self._guard.sent(peer)
        elif sent is Sent.FULL:
            self._guard.refused(peer, frame, sealed)
        else:
            self._guard.leave(peer)
        return sent

    def _let_in(self, arrival: Arrival) -> Arrival | None:
        if not isinstance(arrival, Frame):
            if isinstance(arrival, Down):
                self._guard.leave(arrival.peer)
            return arrival
        guard = self._guard
        frame = guard.heard(arrival.peer, arrival.data)
        if frame is not None:
            return Frame(arrival.peer, frame)
        while guard.replies:
            self._link.send(*guard.replies.popleft())
        if guard.rejected != self._told:
            self._tell()
        return None

    def _tell(self) -> None:
        """Log what was not let in, now and then: a stranger who knocks all the time fills no disk."""
        now = time.monotonic()
        if now - self._told_at < TOLD:
            return
        news = ", ".join(f"{count} {reason}" for reason, count in (self._guard.rejected - self._told).items())
        logger.warning("%s does not let in all frames: %s", self.location, news)
        self._told_at, self._told = now, self._guard.rejected.copy()


def signing(transport: Transport, key: bytes | None) -> Transport:
    """Return the transport, signing with the key if there is one."""
    return transport if key is None else AuthenticatedTransport(transport, key)


def count_with(transport: Transport, machine: ServerSessions | ClientSession) -> None:
    """Have a machine count in `rejected` what the links of a signing transport do not let in."""
    if isinstance(transport, AuthenticatedTransport):
        machine.rejected = transport.rejected


def _lessened(capabilities: Capabilities) -> Capabilities:
    window = None if capabilities.window is None else capabilities.window // SMALLEST
    return replace(capabilities, max_frame=capabilities.max_frame - OVERHEAD, window=window)
