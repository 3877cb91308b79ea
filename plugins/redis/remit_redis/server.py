"""Server: the server's end on Redis: hold the lease, hear the hub channel, know who has joined."""

from __future__ import annotations

from itertools import islice
from time import monotonic
from typing import Any, Final

from remit.errors import LocationInUse, TransportError
from remit.location import Location
from remit.transport import Capabilities, Frame, Peer, Up
from remit_redis.channel_names import FRAME, JOIN, LEAVE, TOKEN, Names, Route, is_token, mint
from remit_redis.connect import DIAL, Address
from remit_redis.link import RedisLink
from remit_redis.resp_connection import Lost, Wire

__all__ = ["ServerLink"]

BEATS: Final = 3
"""Renewals of the lease within its length."""
AGAIN: Final = 0.02
"""Seconds between two looks at the lease of a server that seems to be dead."""
SLACK: Final = 1.0
"""Seconds after a dead server's lease should have run out until `bind` gives up."""
COUNTED: Final = 1000
"""Peers asked for in one beat, so that a beat of a server with very many stays short."""

# Keys: the lease. Arguments: our channel, the start of all channels that we ever had, milliseconds, the news channel.
# Answers 1 if the lease is ours; else how many hear the holder's channel, and for how many ms the lease still runs.
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
    """Many clients. Its channel has a new name after each connection: what was meant for an old one stays away."""

    def __init__(
        self, location: Location, capabilities: Capabilities, address: Address, names: Names, *, lease: float
    ) -> None:
        super().__init__(location, capabilities, address, names)
        self.period = lease / BEATS
        self._lease = round(lease * 1000)
        self._mine = names.hubs + mint() + b"."
        self._epoch = 0
        self._hub = b""
        self._peers: dict[Peer, Route] = {}
        self._uncounted: list[bytes] = []
        self._free_by: float | None = None

    def open(self) -> None:
        """Wait until the location is ours, at most for the lease of a dead server. Raises TransportError."""
        answer_by = monotonic() + 2 * DIAL
        try:
            while not self._settled:
                self._tend()
                error = self._failure or self._trouble
                if error is not None:
                    raise error
                deadline = answer_by if self._free_by is None else self._free_by + SLACK
                if monotonic() >= deadline:
                    raise TransportError(f"redis at {self.location} does not answer; is it busy or stopped?")
                if not self._settled:
                    self._sleep(deadline - monotonic())
        except BaseException:
            self.close(0.0)
            raise

    def _opened(self, wire: Wire) -> None:
        self._epoch += 1
        self._hub = self._mine + str(self._epoch).encode()
        # First the ears, then the claim: who holds a lease and has no reader is dead or away.
        wire.subscribe(self._hub)
        self._claim(wire)

    def _beat(self, wire: Wire) -> None:
        self._claim(wire)
        if not self._settled:
            self._beat_at = monotonic() + AGAIN
            return
        if not self._uncounted:
            self._uncounted = [inbox for inbox, _ in self._peers.values()]
        if self._uncounted:
            wire.ask(self._counted, None, b"PUBSUB", b"NUMSUB", *self._uncounted[-COUNTED:])
            del self._uncounted[-COUNTED:]

    def _claim(self, wire: Wire) -> None:
        words = (b"EVAL", CLAIM, 1, self._names.lease, self._hub, self._mine, self._lease, self._names.news)
        wire.ask(self._claimed, None, *words)

    def _claimed(self, _: object, answer: list[int]) -> None:
        claimed, readers, left = answer
        if claimed:
            self._settle()
        elif self._epoch > 1 or self._settled:
            self._forfeit()
        elif readers or left < 0 or self._renewed(left / 1000):
            self._failure = LocationInUse(f"another server holds {self.location}; stop it or use another prefix")
            raise Lost("another server holds the location")
        else:
            self._beat_at = monotonic() + AGAIN

    def _renewed(self, left: float) -> bool:
        """Whether the holder, of whom nothing is heard, has renewed its lease since we looked first."""
        ends = monotonic() + left
        if self._free_by is None:
            self._free_by = ends
        return ends > self._free_by + SLACK / 2

    def _forfeit(self) -> None:
        self._failure = LocationInUse(
            f"another server took {self.location} over, since this one was not heard of for {self._lease / 1000:g} s: "
            "tick it more often, or give the location a longer lease"
        )
        raise Lost("another server took the location over")

    def _heard(self, channel: bytes, data: bytes) -> None:
        kind, token = data[:1], data[1 : 1 + TOKEN]
        if kind == FRAME and token in self._peers:
            self._arrivals.append(Frame(token, data[1 + TOKEN :]))
        elif kind == JOIN and len(data) == 1 + TOKEN and is_token(token) and token not in self._peers:
            self._peers[token] = self._names.inboxes + token, b""
            self._arrivals.append(Up(token))
        elif kind == LEAVE and len(data) == 1 + TOKEN:
            self._gone(token, "it left")
        else:
            self.dropped += 1

    def _counted(self, _: object, answer: list[Any]) -> None:
        for inbox, readers in zip(islice(answer, 0, None, 2), islice(answer, 1, None, 2), strict=True):
            if not readers:
                self._gone(inbox[-TOKEN:], "it is not heard of any more")

    def _published(self, route: Route, readers: int) -> None:
        if not readers:
            self._gone(route[0][-TOKEN:], "it left without a word")

    def _gone(self, peer: Peer, why: str) -> None:
        if self._peers.pop(peer, None) is not None:
            self._down(peer, why)

    def _route(self, peer: Peer) -> Route | None:
        return self._peers.get(peer)

    def _lost(self, why: str) -> None:
        self._uncounted.clear()
        for peer in list(self._peers):
            self._gone(peer, why)

    def _farewell(self, wire: Wire) -> None:
        if self._settled and self._failure is None:
            wire.ask(self._ignore, None, b"EVAL", RELEASE, 1, self._names.lease, self._hub, self._names.news)
