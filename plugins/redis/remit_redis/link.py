"""What both ends over Redis share: channel names, the calls of a link, and reconnecting."""

from __future__ import annotations

import math
import secrets
import select
from collections import deque
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, TypeAlias

from remit.errors import TransportError
from remit.location import Location
from remit.transport import Arrival, Capabilities, Down, OwnedLink, Peer, Sent, Wakeable
from remit_redis.connection import (
    Address,
    BackgroundConnect,
    CommandRefused,
    ConnectionLost,
    RedisRefused,
    RespConnection,
)

FRAME, JOIN, LEAVE = b"F", b"J", b"L"
"""First byte of a message to the server. The sender's token follows and, for a frame, its data."""
TOKEN_BYTES: Final = 16
"""Size of a token, which consists of hexadecimal digits."""

Route: TypeAlias = tuple[bytes, bytes]
"""A channel, and the prefix of each frame sent to it."""


@dataclass(frozen=True, slots=True)
class ChannelNames:
    """The key and the channels of one location. Pub/sub ignores databases, so the channel names contain the number."""

    lease: bytes
    """Key whose value is the channel of the server that holds the location."""
    hubs: bytes
    """Prefix of the servers' channels."""
    inboxes: bytes
    """Prefix of the clients' channels. The client's token follows."""
    announcements: bytes
    """Channel on which a server sends ``+hub`` when it starts and ``-hub`` when it closes."""

    @classmethod
    def of(cls, prefix: str, database: int) -> ChannelNames:
        """Return the names for a prefix and a database."""
        parts = [f"{prefix}:lease"] + [f"{prefix}:{database}:{part}" for part in ("hub:", "inbox:", "news")]
        return cls(*(part.encode() for part in parts))


def new_token() -> bytes:
    """Return a random token."""
    return secrets.token_hex(TOKEN_BYTES // 2).encode()


def is_token(token: bytes) -> bool:
    """Return whether the bytes have the form of a token."""
    return len(token) == TOKEN_BYTES and all(digit in b"0123456789abcdef" for digit in token)


RECONNECT_S: Final = (0.01, 0.25)
"""Delay of the first attempt to reconnect, which each failure doubles, and the longest delay."""
MAX_QUEUED_ARRIVALS: Final = 64
"""With more arrivals queued, a full `send` does not read further replies."""
MIN_CLOSE_WAIT_S: Final = 0.05
"""Time for which `close` waits for Redis to confirm the leave message, even if its linger is shorter."""


class RedisLink(OwnedLink):
    """Base of both ends: a connection to Redis that is replaced when it is lost."""

    def __init__(self, location: Location, capabilities: Capabilities, address: Address, names: ChannelNames) -> None:
        super().__init__(location, capabilities)
        self.dropped = 0
        """Messages received that were not a frame of a peer."""
        self._names = names
        self._address = address
        self._arrivals: deque[Arrival] = deque()
        self.connection: RespConnection | None = None
        self._connecting: BackgroundConnect | None = None
        self._retry_at = 0.0
        self._retry_delay = RECONNECT_S[0]
        self.heartbeat_at = math.inf
        self._wanted_bytes: int | None = None
        """Size of the command that `send` refused as FULL."""
        self._ready = False
        """True once Redis has accepted the first exchange of the link."""
        self._last_error: TransportError | None = None
        self._fatal_error: TransportError | None = None
        """Set when the link can never be used again."""

    # -- hooks of the two ends -----------------------------------------------------------------------------------

    period: float
    """Seconds between two heartbeats."""

    def _on_connected(self, connection: RespConnection) -> None:
        """Subscribe, and start the exchange that makes the link ready."""

    def _on_disconnected(self, why: str) -> None:
        """Report every peer as down."""

    def _on_message(self, channel: bytes, data: bytes) -> None:
        """Handle a pub/sub message."""

    def _on_heartbeat(self, connection: RespConnection) -> None:
        """Renew or check what must be renewed or checked every `period` seconds."""

    def _send_leave(self, connection: RespConnection) -> None:
        """Announce that this end closes."""

    def _route(self, peer: Peer) -> Route | None:
        """Return the route to a peer, or None if it is not connected."""
        raise NotImplementedError

    def _on_published(self, route: Route, readers: int) -> None:
        """Handle the reply to PUBLISH, the number of subscribers that got the frame: 0 means that the peer is gone."""

    # -- contract ------------------------------------------------------------------------------------------------

    def send(self, peer: Peer, frame: bytes) -> Sent:
        """Send one frame. Never blocks. Raises FrameTooLarge."""
        self._check(frame)
        try:
            if monotonic() >= self.heartbeat_at:
                self._process()
            full = not self._has_room(len(frame))
            route = self._route(peer)
            if self.connection is None or route is None:
                return Sent.GONE
            if full:
                return Sent.FULL
            self.connection.send_command(self._on_published, route, b"PUBLISH", route[0], route[1] + frame)
        except ConnectionLost as lost:
            self._drop_connection(lost)
            return Sent.GONE
        return Sent.ACCEPTED

    def receive(self) -> Arrival | None:
        """Return the next arrival, or None. Raises LocationInUse if another server has taken over the location."""
        self._check()
        if not self._arrivals:
            self._process()
            if not self._arrivals:
                if self._fatal_error is not None:
                    raise self._fatal_error
                return None
        return self._arrivals.popleft()

    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        """Wait up to ``timeout`` seconds for an arrival, room to send, or ``waker``."""
        self._check()
        deadline = monotonic() + timeout
        while not self._arrivals:
            self._process()
            remaining = deadline - monotonic()
            if self._arrivals or self._fatal_error or self._has_regained_room() or remaining <= 0:
                return
            if self._sleep(remaining, waker):
                return

    def close(self, linger: float) -> None:
        """Announce the end and close within ``linger`` seconds."""
        if not self._ending():
            return
        if self._connecting is not None:
            self._connecting.abandon()
            self._connecting = None
        connection, self.connection = self.connection, None
        if connection is not None:
            try:
                self._send_leave(connection)
                connection.drain(max(linger, MIN_CLOSE_WAIT_S))
            except ConnectionLost:
                pass  # so is the leave message: the peers notice at their next heartbeat
            finally:
                connection.close()

    def after_fork(self) -> None:
        """Close the copies of the descriptors in a forked child, without sending anything."""
        super().after_fork()
        if self.connection is not None:
            self.connection.close_inherited()
        if self._connecting is not None:
            self._connecting.close_inherited()

    # -- connection ----------------------------------------------------------------------------------------------

    def _process(self) -> None:
        """Handle what has arrived and what is due, or reconnect."""
        connection = self.connection
        if connection is None:
            self._reconnect()
            return
        try:
            connection.process()
            now = monotonic()
            if now >= self.heartbeat_at:
                self.heartbeat_at = now + self.period
                connection.check_alive(now)
                self._on_heartbeat(connection)
        except ConnectionLost as lost:
            self._drop_connection(lost)

    def _has_room(self, size: int) -> bool:
        connection = self.connection
        if connection is None or connection.has_room(size):
            return True
        if len(self._arrivals) < MAX_QUEUED_ARRIVALS:
            connection.process()
        self._wanted_bytes = None if connection.has_room(size) else size
        return self._wanted_bytes is None

    def _has_regained_room(self) -> bool:
        if self._wanted_bytes is None or (
            self.connection is not None and not self.connection.has_room(self._wanted_bytes)
        ):
            return False
        self._wanted_bytes = None
        return True

    def _sleep(self, seconds: float, waker: Wakeable | None = None) -> bool:
        """Wait for Redis, the next due time or ``waker``; return True if it was the waker."""
        poll, own = select.poll(), self.connection or self._connecting
        if self.connection is not None:
            poll.register(self.connection, self.connection.events)
        elif own is not None:
            poll.register(own, select.POLLIN)
        if waker is not None:
            poll.register(waker, select.POLLIN)
        due = math.inf if self._connecting else self.heartbeat_at if self.connection else self._retry_at
        ready = poll.poll(max(0.0, min(seconds, due - monotonic())) * 1000)
        return waker is not None and any(descriptor == waker.fileno() for descriptor, _ in ready)

    def _reconnect(self) -> None:
        if self._fatal_error is not None:
            return
        if self._connecting is None:
            if monotonic() >= self._retry_at:
                self._start_connecting()
            return
        try:
            opened = self._connecting.result()
        except TransportError as error:
            self._connecting = None
            self._last_error = error
            self._schedule_retry()
            return
        if opened is None:
            return
        self._connecting = None
        self.connection = connection = RespConnection(opened, self._on_message)
        self.heartbeat_at = monotonic() + self.period
        try:
            self._on_connected(connection)
        except ConnectionLost as lost:
            self._drop_connection(lost)

    def _start_connecting(self) -> None:
        try:
            self._connecting = BackgroundConnect(self._address)
        except OSError as error:  # out of descriptors: try again later
            self._last_error = TransportError(f"cannot connect to redis at {self._address.location}: {error.strerror}")
            self._schedule_retry()

    def _drop_connection(self, lost: ConnectionLost) -> None:
        if self.connection is not None:
            self.connection.close()
        self.connection = None
        self.heartbeat_at = math.inf
        kind = RedisRefused if isinstance(lost, CommandRefused) else TransportError
        hint = "; the README of remit-redis lists what a user must be allowed" if "NOPERM" in str(lost) else ""
        self._last_error = kind(f"{lost} (at {self._address.location}){hint}")
        self._schedule_retry()
        self._on_disconnected(str(lost))

    def _schedule_retry(self) -> None:
        self._retry_at = monotonic() + self._retry_delay
        self._retry_delay = min(2 * self._retry_delay, RECONNECT_S[1])

    def _mark_ready(self) -> None:
        self._ready = True
        self._last_error = None
        self._retry_delay = RECONNECT_S[0]

    def _down(self, peer: Peer, why: str) -> None:
        self._arrivals.append(Down(peer, why))

    def _ignore(self, _context: Any, _reply: Any) -> None:
        """Drop a reply that has no information."""
