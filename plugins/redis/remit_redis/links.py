"""Links over Redis pub/sub: the server holds the lease of the location, and each client joins the server's channel.

The value of the lease is the name of the server's channel. A client finds it there, subscribes to an inbox of its own,
and announces itself in the server's channel. PUBLISH returns the number of subscribers, by which each end notices that
the other one is gone.
"""

from __future__ import annotations

import math
import re
import secrets
import select
from collections import deque
from itertools import islice
from time import monotonic
from typing import Any, Final, Self, TypeAlias

from remit.errors import LocationInUse, TransportError
from remit.location import Location
from remit.transport import SERVER, Arrival, Capabilities, Down, Frame, OwnedLink, Peer, Sent, Up, Wakeable
from remit_redis.connection import (
    CONNECT_TIMEOUT_S,
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
_TOKEN: Final = re.compile(rb"[0-9a-f]{16}")

_ACCEPTED: Final = Sent.ACCEPTED  # Each access through the class costs 70 ns on CPython 3.11.
Route: TypeAlias = tuple[bytes, bytes]
"""A channel, and the prefix of each frame sent to it."""


RECONNECT_S: Final = (0.01, 0.25)
"""Delay of the first attempt to reconnect, which each failure doubles, and the longest delay."""
MAX_QUEUED_ARRIVALS: Final = 64
"""With more arrivals queued, a full `send` does not read further replies."""
MIN_CLOSE_WAIT_S: Final = 0.05
"""Time for which `close` waits for Redis to confirm the leave message, even if its linger is shorter."""


class ChannelNames:
    """The key and the channels of one location. Pub/sub ignores databases, so the channel names contain the number."""

    def __init__(self, prefix: str, database: int) -> None:
        self.lease = f"{prefix}:lease".encode()
        """Key whose value is the channel of the server that holds the location."""
        self.hubs = f"{prefix}:{database}:hub:".encode()
        """Prefix of the servers' channels."""
        self.inboxes = f"{prefix}:{database}:inbox:".encode()
        """Prefix of the clients' channels. The client's token follows."""
        self.announcements = f"{prefix}:{database}:news".encode()
        """Channel on which a server sends ``+hub`` when it starts and ``-hub`` when it closes."""


def new_token() -> bytes:
    """Return a random token."""
    return secrets.token_hex(TOKEN_BYTES // 2).encode()


class RedisLink(OwnedLink):
    """Base of both ends, which replaces its connection to Redis when that is lost."""

    def __init__(self, location: Location, capabilities: Capabilities, address: Address, names: ChannelNames) -> None:
        super().__init__(location, capabilities)
        self.dropped = 0
        """Messages received that were not a frame of a peer."""
        self._names = names
        self._address = address
        self._arrivals: deque[Arrival] = deque()
        self.peers: dict[Peer, Route] = {}
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

    def _on_message(self, channel: bytes, data: bytes) -> None:
        """Handle a pub/sub message."""

    def _on_heartbeat(self, connection: RespConnection) -> None:
        """Renew the lease or check the server. Called every `period` seconds."""

    def _send_leave(self, connection: RespConnection) -> None:
        """Announce that this end closes."""

    def _on_published(self, route: Route, readers: int) -> None:
        """Handle the reply to PUBLISH, the number of subscribers that got the frame: 0 means that the peer is gone."""

    def _await_ready(self) -> None:
        """Wait until the link may be used. Raises TransportError."""

    # -- contract ------------------------------------------------------------------------------------------------

    def open(self) -> Self:
        """Wait until the link may be used, and return it. Raises TransportError after it has closed the link."""
        try:
            self._await_ready()
        except BaseException:
            self.close(0.0)
            raise
        return self

    def send(self, peer: Peer, frame: bytes) -> Sent:
        """Send one frame. Never blocks. Raises FrameTooLarge."""
        self._check(frame)
        try:
            if monotonic() >= self.heartbeat_at:
                self._process()
            full = not self._has_room(len(frame))
            route = self.peers.get(peer)
            if self.connection is None or route is None:
                return Sent.GONE
            if full:
                return Sent.FULL
            self.connection.send_command(self._on_published, route, b"PUBLISH", route[0], route[1] + frame)
        except ConnectionLost as lost:
            self._drop_connection(lost)
            return Sent.GONE
        return _ACCEPTED

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

    def _release(self, linger: float) -> None:
        if self._connecting is not None:
            self._connecting.abandon()
            self._connecting = None
        connection, self.connection = self.connection, None
        if connection is not None:
            try:
                self._send_leave(connection)
                connection.drain(max(linger, MIN_CLOSE_WAIT_S))
            except ConnectionLost:
                pass  # The leave message is lost: the peers notice the end at their next heartbeat.
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
        """Handle replies, messages and a due heartbeat, or reconnect."""
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
        wanted, connection = self._wanted_bytes, self.connection
        if wanted is None or (connection is not None and not connection.has_room(wanted)):
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
        self._polling = True
        ready = poll.poll(max(0.0, min(seconds, due - monotonic())) * 1000)
        self._polling = False
        return waker is not None and any(descriptor == waker.fileno() for descriptor, _ in ready)

    def _reconnect(self) -> None:
        """Start an attempt to connect when it is due, or use the result of the one that runs."""
        if self._fatal_error is not None:
            return
        try:
            if self._connecting is None:
                if monotonic() >= self._retry_at:
                    self._connecting = BackgroundConnect(self._address)
                return
            opened = self._connecting.result()
        except TransportError as error:
            self._connecting = None
            self._last_error = error
            self.why = str(error)
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

    def _drop_connection(self, lost: ConnectionLost) -> None:
        if self.connection is not None:
            self.connection.close()
        self.connection = None
        self.heartbeat_at = math.inf
        kind = RedisRefused if isinstance(lost, CommandRefused) else TransportError
        hint = "; the README of remit-redis lists what a user must be allowed" if "NOPERM" in str(lost) else ""
        self._last_error = kind(f"{lost} (at {self._address.location}){hint}")
        self.why = str(self._last_error)
        self._schedule_retry()
        self._on_disconnected(str(lost))

    def _on_disconnected(self, why: str) -> None:
        for peer in list(self.peers):
            self._remove_peer(peer, why)

    def _remove_peer(self, peer: Peer, why: str) -> None:
        if self.peers.pop(peer, None) is not None:
            self._arrivals.append(Down(peer, why))

    def _schedule_retry(self) -> None:
        self._retry_at = monotonic() + self._retry_delay
        self._retry_delay = min(2 * self._retry_delay, RECONNECT_S[1])

    def _mark_ready(self) -> None:
        self._ready = True
        self._last_error = None
        self.why = ""
        self._retry_delay = RECONNECT_S[0]


# -- server -----------------------------------------------------------------------------------------------------------

RENEWALS_PER_LEASE: Final = 3
CLAIM_RETRY_S: Final = 0.02
"""Interval at which `bind` tries to take over the lease of a server that seems dead."""
LEASE_SLACK_S: Final = 1.0
"""`bind` fails when the lease of a dead server has not expired this long after it should have."""
PEERS_PER_HEARTBEAT: Final = 1000
"""Peers checked in one heartbeat, so that it stays short with very many peers."""

# Scripts, so that check and change of the lease are one atomic step.
# Keys: the lease. Arguments: this server's channel, the prefix of all its channels, milliseconds, announcements.
# Returns {1, 0, 0} if the lease is held; otherwise the subscribers of the holder's channel and the remaining ms.
CLAIM: Final = b"""
local holder = redis.call('GET', KEYS[1])
if holder and string.sub(holder, 1, #ARGV[2]) ~= ARGV[2] then
  return {0, redis.call('PUBSUB', 'NUMSUB', holder)[2], redis.call('PTTL', KEYS[1])}
end
if holder == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
else
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
  redis.call('PUBLISH', ARGV[4], '+' .. ARGV[1])
end
return {1, 0, 0}
"""
RELEASE: Final = b"""
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return redis.call('PUBLISH', ARGV[2], '-' .. ARGV[1])
"""


class ServerLink(RedisLink):
    """The server's end. Its channel gets a new name with each connection, so that no message for an old one arrives."""

    def __init__(
        self, location: Location, capabilities: Capabilities, address: Address, names: ChannelNames, *, lease: float
    ) -> None:
        super().__init__(location, capabilities, address, names)
        self.period = lease / RENEWALS_PER_LEASE
        self._lease_ms = round(lease * 1000)
        self._hub_prefix = names.hubs + new_token() + b"."
        self._epoch = 0
        self._hub = b""
        self._unchecked: list[bytes] = []
        self._expected_free_at: float | None = None

    def _await_ready(self) -> None:
        """Wait for the lease, at most until that of a dead server expires. Raises TransportError."""
        answer_by = monotonic() + 2 * CONNECT_TIMEOUT_S
        while not self._ready:
            deadline = answer_by if self._expected_free_at is None else self._expected_free_at + LEASE_SLACK_S
            left = deadline - monotonic()
            if left <= 0:
                raise TransportError(f"redis at {self.location} does not answer; is it busy or stopped?")
            self._sleep(left)
            self._process()
            if error := self._fatal_error or self._last_error:
                raise error

    def _on_connected(self, connection: RespConnection) -> None:
        self._epoch += 1
        self._unchecked.clear()
        self._hub = self._hub_prefix + str(self._epoch).encode()
        # Subscribe before claiming: a holder of the lease whose channel has no subscriber counts as dead.
        connection.send_without_reply(b"SUBSCRIBE", self._hub)
        self._send_claim(connection)

    def _on_heartbeat(self, connection: RespConnection) -> None:
        self._send_claim(connection)
        if not self._ready:
            self.heartbeat_at = monotonic() + CLAIM_RETRY_S
            return
        if not self._unchecked:
            self._unchecked = [inbox for inbox, _ in self.peers.values()]
        if self._unchecked:
            connection.send_command(
                self._on_subscriber_counts, None, b"PUBSUB", b"NUMSUB", *self._unchecked[-PEERS_PER_HEARTBEAT:]
            )
            del self._unchecked[-PEERS_PER_HEARTBEAT:]

    def _send_claim(self, connection: RespConnection) -> None:
        names = self._names
        words = (CLAIM, 1, names.lease, self._hub, self._hub_prefix, self._lease_ms, names.announcements)
        connection.send_command(self._on_claim, None, b"EVAL", *words)

    def _on_claim(self, _: object, answer: list[int]) -> None:
        claimed, readers, left = answer
        if claimed:
            self._mark_ready()
        elif self._epoch > 1 or self._ready:
            self._fatal_error = LocationInUse(
                f"another server took {self.location} over, since this one did not renew its lease of "
                f"{self._lease_ms / 1000:g} s: tick it more often, or give the location a longer lease"
            )
            raise ConnectionLost("another server took the location over")
        elif readers or left < 0 or self._was_renewed(left / 1000):
            self._fatal_error = LocationInUse(f"another server holds {self.location}; stop it or use another prefix")
            raise ConnectionLost("another server holds the location")
        else:
            self.heartbeat_at = monotonic() + CLAIM_RETRY_S

    def _was_renewed(self, left: float) -> bool:
        # A holder without a subscriber is dead, or it reconnects and renews its lease, which ends later then.
        ends = monotonic() + left
        if self._expected_free_at is None:
            self._expected_free_at = ends
        return ends > self._expected_free_at + LEASE_SLACK_S / 2

    def _on_message(self, channel: bytes, data: bytes) -> None:
        kind, token = data[:1], data[1 : 1 + TOKEN_BYTES]
        if kind == FRAME and token in self.peers:
            self._arrivals.append(Frame(token, data[1 + TOKEN_BYTES :]))
        elif kind == JOIN and _TOKEN.fullmatch(data[1:]) and token not in self.peers:
            self.peers[token] = self._names.inboxes + token, b""
            self._arrivals.append(Up(token))
        elif kind == LEAVE and len(data) == 1 + TOKEN_BYTES:
            self._remove_peer(token, "it left")
        else:
            self.dropped += 1

    def _on_subscriber_counts(self, _: object, answer: list[Any]) -> None:
        for inbox, readers in zip(islice(answer, 0, None, 2), islice(answer, 1, None, 2), strict=True):
            if not readers:
                self._remove_peer(inbox[-TOKEN_BYTES:], "it is gone")

    def _on_published(self, route: Route, readers: int) -> None:
        if not readers:
            self._remove_peer(route[0][-TOKEN_BYTES:], "it is gone")

    def _send_leave(self, connection: RespConnection) -> None:
        if self._ready and self._fatal_error is None:
            words = (RELEASE, 1, self._names.lease, self._hub, self._names.announcements)
            connection.send_command(None, None, b"EVAL", *words)


# -- client -----------------------------------------------------------------------------------------------------------

CHECK_INTERVAL_S: Final = 1.0
"""Interval at which the client checks whether a server is there."""
FIRST_REPLY_WAIT_S: Final = 0.5
"""Time for which `connect` waits for Redis, to raise if it refuses the client."""


class ClientLink(RedisLink):
    """The client's end. Each time it joins a server it uses a new token, which also names its inbox."""

    period = CHECK_INTERVAL_S

    def __init__(self, location: Location, capabilities: Capabilities, address: Address, names: ChannelNames) -> None:
        super().__init__(location, capabilities, address, names)
        self._hub: bytes | None = None
        self._token = b""
        self._inbox = b""
        self._previous_token = b""

    def _await_ready(self) -> None:
        """Wait briefly for Redis, which may come up later. Raises TransportError if it refuses the client."""
        deadline = monotonic() + FIRST_REPLY_WAIT_S
        while not (self._ready or self._last_error) and (left := deadline - monotonic()) > 0:
            self._sleep(left)
            self._process()
        if isinstance(self._last_error, RedisRefused):
            raise self._last_error

    def _on_connected(self, connection: RespConnection) -> None:
        connection.send_without_reply(b"SUBSCRIBE", self._names.announcements)
        connection.send_command(self._on_lease, None, b"GET", self._names.lease)

    def _on_heartbeat(self, connection: RespConnection) -> None:
        if self._hub is None:
            connection.send_command(self._on_lease, None, b"GET", self._names.lease)
        else:
            connection.send_command(self._on_subscriber_count, self._token, b"PUBSUB", b"NUMSUB", self._hub)

    def _on_lease(self, _: object, hub: bytes | None) -> None:
        # The value of the lease is the channel of the server.
        self._mark_ready()
        if self._hub is None:
            self.why = "redis is reachable, but no server holds this location: is a server there?"
            if hub is not None:
                self._join(hub)

    def _join(self, hub: bytes) -> None:
        connection = self.connection
        if connection is None:
            return
        self._token = new_token()
        self._inbox = self._names.inboxes + self._token
        self._hub = hub
        connection.send_without_reply(b"SUBSCRIBE", self._inbox)
        if self._previous_token:  # this server may still have the peer of the lost connection
            connection.send_command(None, None, b"PUBLISH", hub, LEAVE + self._previous_token)
        self._previous_token = self._token
        connection.send_command(self._on_joined, self._token, b"PUBLISH", hub, JOIN + self._token)

    def _on_joined(self, token: bytes, readers: int) -> None:
        if token != self._token or self._hub is None:
            return
        if readers:
            self.why = ""
            self.peers[SERVER] = self._hub, FRAME + token
            self._arrivals.append(Up(SERVER))
        else:
            self._leave("it is not there")

    def _on_subscriber_count(self, token: bytes, answer: list[Any]) -> None:
        # A reply for a former token is about a former server.
        if not answer[1] and token == self._token:
            self._replace_server()

    def _on_published(self, route: Route, readers: int) -> None:
        if not readers and route is self.peers.get(SERVER):
            self._replace_server()

    def _replace_server(self) -> None:
        self._leave("the server is gone")
        if self.connection is not None:
            # Now rather than after the period: another server may hold the lease already.
            self._on_heartbeat(self.connection)

    def _leave(self, why: str) -> None:
        self.why = f"redis is reachable, but the server is not: {why}"
        if self.connection is not None:
            self.connection.send_without_reply(b"UNSUBSCRIBE", self._inbox)
        self._on_disconnected(why)

    def _on_message(self, channel: bytes, data: bytes) -> None:
        if channel == self._inbox and self.peers:
            self._arrivals.append(Frame(SERVER, data))
        elif channel == self._names.announcements and data[1:].startswith(self._names.hubs):
            self._on_announcement(data[:1], data[1:])
        else:
            self.dropped += 1

    def _on_announcement(self, kind: bytes, hub: bytes) -> None:
        connection = self.connection
        if kind == b"-" and hub == self._hub:
            self._leave("the server closed")
        elif kind == b"+" and hub != self._hub and connection is not None:
            if self._hub is not None:
                connection.send_command(None, None, b"PUBLISH", self._hub, LEAVE + self._token)
                self._leave("another server came")
            self._join(hub)

    def _on_disconnected(self, why: str) -> None:
        self._hub, self._token, self._inbox = None, b"", b""
        super()._on_disconnected(why)

    def _send_leave(self, connection: RespConnection) -> None:
        if self._hub is not None:
            connection.send_command(None, None, b"PUBLISH", self._hub, LEAVE + self._token)
