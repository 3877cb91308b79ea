"""Wrapper that authenticates every frame of any transport with a shared key, and drops forged and replayed frames.

It does not encrypt. Without a key the wrapper is not used at all, so that frames cost nothing extra.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Final, TypeVar

from remit._protocol.auth import OVERHEAD_BYTES, ClientAuth, ServerAuth, SharedKey
from remit._protocol.client_session import ClientSession
from remit._protocol.server_sessions import ServerSessions
from remit.location import Location
from remit.transport import SERVER, Arrival, Capabilities, Down, Frame, Link, Peer, Sent, Transport, Up, Wakeable

logger = logging.getLogger("remit")
L = TypeVar("L", bound=Link)

MAX_REJECTED_PER_RECEIVE: Final = 64
"""Frames that one `receive` may drop before it returns None: a flood of forged frames must not block the caller."""
FRAME_GROWTH: Final = 2
"""Factor by which the smallest event frames grow, for backends that bound the bytes in transit."""
LOG_INTERVAL_S: Final = 60.0
"""Seconds between two log records about rejected frames."""


class AuthenticatedTransport:
    """A transport whose links sign and verify all frames. ``rejected`` counts the dropped frames by reason."""

    def __init__(self, transport: Transport, key: bytes) -> None:
        self.capabilities = _reduced(transport.capabilities)
        self.options = transport.options
        self.rejected: Counter[str] = Counter()
        self._transport = transport
        self._key = SharedKey(key)

    def bind(self, location: Location) -> AuthenticatedServerLink:
        """Open the server's link. Raises the wrapped transport's errors."""
        guard = ServerAuth(self._key, self.rejected)
        return wrap_link(lambda: self._transport.bind(location), lambda link: AuthenticatedServerLink(link, guard))

    def connect(self, location: Location) -> AuthenticatedClientLink:
        """Open the client's link. Raises the wrapped transport's errors."""
        guard = ClientAuth(self._key, self.rejected)
        return wrap_link(lambda: self._transport.connect(location), lambda link: AuthenticatedClientLink(link, guard))


def wrap_link(open_: Callable[[], Link], wrap: Callable[[Link], L]) -> L:
    """Open a link and return its wrapper. An exception in between must not leave the link open."""
    link = None
    try:
        link = open_()
        return wrap(link)
    except BaseException:
        if link is not None:
            link.close(0.0)
        raise


class LinkWrapper:
    """Base of a link around another one, which it recovers and closes."""

    _link: Link

    def recover(self) -> bool:
        """Continue after an exception as the wrapped link does. The next HELLO starts another handshake."""
        recover = getattr(self._link, "recover", None)
        return recover is not None and bool(recover())

    def close(self, linger: float) -> None:
        """Close the link within ``linger`` seconds."""
        self._link.close(linger)

    def __del__(self) -> None:
        if hasattr(self, "_link") and not sys.is_finalizing():
            self._link.close(0.0)  # An interrupt may have left this link without an owner.


class _AuthenticatedLink(LinkWrapper):
    """Base of both ends. The wrapped link checks the thread and the process of its caller."""

    def __init__(self, link: Link) -> None:
        self.location = link.location
        self.capabilities = _reduced(link.capabilities)
        self._link = link

    @property
    def owner(self) -> int:
        """Ident of the thread that may use the link."""
        return self._link.owner

    @owner.setter
    def owner(self, thread: int) -> None:
        self._link.owner = thread

    @property
    def why(self) -> str:
        """Why the wrapped link is not connected."""
        return self._link.why

    def receive(self) -> Arrival | None:
        """Return the next arrival that passed the checks, or None. Never blocks."""
        for _ in range(MAX_REJECTED_PER_RECEIVE):
            arrival = self._link.receive()
            if arrival is None:
                return None
            passed = self._filter(arrival)
            if passed is not None:
                return passed
        return None

    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        """Wait as the wrapped link does."""
        self._link.wait(timeout, waker)

    def check_location(self) -> None:
        """Check as the wrapped link does."""
        self._link.check_location()

    def _filter(self, arrival: Arrival) -> Arrival | None:
        """Return the arrival with its frame verified, or None to drop it."""
        raise NotImplementedError


class AuthenticatedClientLink(_AuthenticatedLink):
    """The client's end."""

    def __init__(self, link: Link, guard: ClientAuth) -> None:
        super().__init__(link)
        self._auth = guard

    def send(self, peer: Peer, frame: bytes) -> Sent:
        """Send one frame. FULL until the server has accepted the handshake. Raises FrameTooLarge."""
        sealed = self._auth.wrap_frame(frame)
        if sealed is None or not self._send_auth_request():
            return Sent.FULL
        sent = self._link.send(peer, sealed)
        if sent is Sent.ACCEPTED:
            self._auth.mark_sent()
        return sent

    def _send_auth_request(self) -> bool:
        first = self._auth.pending_hello
        if first is not None and self._link.send(SERVER, first) is Sent.ACCEPTED:
            self._auth.pending_hello = None
        return self._auth.pending_hello is None

    def _filter(self, arrival: Arrival) -> Arrival | None:
        if not isinstance(arrival, Frame):
            # The key of a channel is valid for one connection, so both events require a new handshake.
            if isinstance(arrival, Up | Down):
                self._auth.reset()
            return arrival
        frame = self._auth.unwrap_frame(arrival.data)
        # The frame may have been a handshake step whose answer is due. A full link sends it before the next frame.
        self._send_auth_request()
        return None if frame is None else Frame(arrival.peer, frame)


class AuthenticatedServerLink(_AuthenticatedLink):
    """The server's end."""

    def __init__(self, link: Link, guard: ServerAuth) -> None:
        super().__init__(link)
        self._auth = guard
        self._logged_at = -LOG_INTERVAL_S
        self._logged: Counter[str] = Counter()

    def send(self, peer: Peer, frame: bytes) -> Sent:
        """Send one frame. GONE if the peer has no channel: its client repeats the handshake. Raises FrameTooLarge."""
        sealed = self._auth.wrap_frame(peer, frame)
        if sealed is None:
            return Sent.GONE
        sent = self._link.send(peer, sealed)
        if sent is Sent.ACCEPTED:
            self._auth.mark_sent(peer)
        elif sent is Sent.GONE:
            self._auth.remove_peer(peer)
        return sent

    def _filter(self, arrival: Arrival) -> Arrival | None:
        if not isinstance(arrival, Frame):
            if isinstance(arrival, Down):
                self._auth.remove_peer(arrival.peer)
            return arrival
        guard = self._auth
        frame = guard.unwrap_frame(arrival.peer, arrival.data)
        if frame is not None:
            return Frame(arrival.peer, frame)
        while guard.replies:
            self._link.send(*guard.replies.popleft())
        if guard.rejected != self._logged:
            self._log_rejected()
        return None

    def _log_rejected(self) -> None:
        """Log the rejected frames at a bounded rate, so that a flood of them cannot fill the disk."""
        now = time.monotonic()
        if now - self._logged_at < LOG_INTERVAL_S:
            return
        news = ", ".join(f"{count} {reason}" for reason, count in (self._auth.rejected - self._logged).items())
        logger.warning("%s rejected frames: %s", self.location, news)
        self._logged_at, self._logged = now, self._auth.rejected.copy()


def with_authentication(transport: Transport, key: bytes | None) -> Transport:
    """Return the transport, wrapped if there is a key."""
    return transport if key is None else AuthenticatedTransport(transport, key)


def share_rejected_counter(transport: Transport, machine: ServerSessions | ClientSession) -> None:
    """Count the frames that an authenticated transport rejects in the ``rejected`` counter of a session machine."""
    if isinstance(transport, AuthenticatedTransport):
        machine.rejected = transport.rejected


def _reduced(capabilities: Capabilities) -> Capabilities:
    window = None if capabilities.window is None else capabilities.window // FRAME_GROWTH
    return replace(capabilities, max_frame=capabilities.max_frame - OVERHEAD_BYTES, window=window)
