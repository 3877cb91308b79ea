"""The server's end over Redis: holds the lease of the location, receives in its channel, and tracks the clients."""

from __future__ import annotations

from itertools import islice
from time import monotonic
from typing import Any, Final

from remit.errors import LocationInUse, TransportError
from remit.location import Location
from remit.transport import Capabilities, Frame, Peer, Up
from remit_redis.connection import CONNECT_TIMEOUT_S, Address, ConnectionLost, RespConnection
from remit_redis.link import FRAME, JOIN, LEAVE, TOKEN_BYTES, ChannelNames, RedisLink, Route, is_token, new_token

RENEWALS_PER_LEASE: Final = 3
CLAIM_RETRY_S: Final = 0.02
"""Interval at which `bind` tries to take over the lease of a server that seems dead."""
LEASE_SLACK_S: Final = 1.0
"""`bind` fails when the lease of a dead server has not expired this long after it should have."""
PEERS_PER_HEARTBEAT: Final = 1000
"""Peers checked in one heartbeat, so that it stays short with very many peers."""

# Scripts, so that check and change of the lease are one atomic step.
# Keys: the lease. Arguments: this server's channel, the prefix of all its channels, milliseconds, announcements.
# Returns {1, 0, 0} if the lease is held; otherwise the subscribers of the holder's channel and the lease's rest in ms.
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
        self.peers: dict[Peer, Route] = {}
        self._unchecked: list[bytes] = []
        self._expected_free_at: float | None = None

    def open(self) -> None:
        """Wait for the lease, at most until that of a dead server expires. Raises TransportError."""
        answer_by = monotonic() + 2 * CONNECT_TIMEOUT_S
        try:
            while not self._ready:
                self._process()
                error = self._fatal_error or self._last_error
                if error is not None:
                    raise error
                deadline = answer_by if self._expected_free_at is None else self._expected_free_at + LEASE_SLACK_S
                if monotonic() >= deadline:
                    raise TransportError(f"redis at {self.location} does not answer; is it busy or stopped?")
                if not self._ready:
                    self._sleep(deadline - monotonic())
        except BaseException:
            self.close(0.0)
            raise

    def _on_connected(self, connection: RespConnection) -> None:
        self._epoch += 1
        self._hub = self._hub_prefix + str(self._epoch).encode()
        # Subscribe before claiming: a holder of the lease whose channel has no subscriber counts as dead.
        connection.subscribe(self._hub)
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
            self._lose_lease()
        elif readers or left < 0 or self._was_renewed(left / 1000):
            self._fatal_error = LocationInUse(f"another server holds {self.location}; stop it or use another prefix")
            raise ConnectionLost("another server holds the location")
        else:
            self.heartbeat_at = monotonic() + CLAIM_RETRY_S

    def _was_renewed(self, left: float) -> bool:
        """Return whether the holder, which has no subscriber, has renewed its lease since the first attempt."""
        ends = monotonic() + left
        if self._expected_free_at is None:
            self._expected_free_at = ends
        return ends > self._expected_free_at + LEASE_SLACK_S / 2

    def _lose_lease(self) -> None:
        self._fatal_error = LocationInUse(
            f"another server took {self.location} over, since this one did not renew its lease of "
            f"{self._lease_ms / 1000:g} s: tick it more often, or give the location a longer lease"
        )
        raise ConnectionLost("another server took the location over")

    def _on_message(self, channel: bytes, data: bytes) -> None:
        kind, token = data[:1], data[1 : 1 + TOKEN_BYTES]
        if kind == FRAME and token in self.peers:
            self._arrivals.append(Frame(token, data[1 + TOKEN_BYTES :]))
        elif kind == JOIN and len(data) == 1 + TOKEN_BYTES and is_token(token) and token not in self.peers:
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

    def _remove_peer(self, peer: Peer, why: str) -> None:
        if self.peers.pop(peer, None) is not None:
            self._down(peer, why)

    def _route(self, peer: Peer) -> Route | None:
        return self.peers.get(peer)

    def _on_disconnected(self, why: str) -> None:
        self._unchecked.clear()
        for peer in list(self.peers):
            self._remove_peer(peer, why)

    def _send_leave(self, connection: RespConnection) -> None:
        if self._ready and self._fatal_error is None:
            connection.send_command(
                self._ignore, None, b"EVAL", RELEASE, 1, self._names.lease, self._hub, self._names.announcements
            )
