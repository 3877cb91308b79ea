"""Client: the client's end on Redis: find the server's channel, join it, hear an inbox that is used once."""

from __future__ import annotations

from time import monotonic
from typing import Any, Final

from remit.location import Location
from remit.transport import SERVER, Capabilities, Frame, Peer, Up
from remit_redis.channel_names import FRAME, JOIN, LEAVE, Names, Route, mint
from remit_redis.connect import Address, Refused
from remit_redis.link import RedisLink
from remit_redis.resp_connection import Wire

__all__ = ["ClientLink"]

CHECK: Final = 1.0
"""Seconds between two questions whether the server is there: yet, or still."""
FIRST: Final = 0.5
"""Seconds for which `connect` waits for Redis, to be able to say that it refuses."""


class ClientLink(RedisLink):
    """One peer, the server. Each time it joins a server its inbox, its token there, is a new one."""

    period = CHECK

    def __init__(self, location: Location, capabilities: Capabilities, address: Address, names: Names) -> None:
        super().__init__(location, capabilities, address, names)
        self._hub: bytes | None = None
        self._token = b""
        self._inbox = b""
        self._way: Route | None = None
        self._stale = b""

    def open(self) -> None:
        """Wait a moment for Redis. Raises TransportError if it refuses; if it is away, the link comes up later."""
        deadline = monotonic() + FIRST
        try:
            while not self._settled and self._trouble is None and monotonic() < deadline:
                self._tend()
                if not self._settled and self._trouble is None:
                    self._sleep(deadline - monotonic())
            if isinstance(self._trouble, Refused):
                raise self._trouble
        except BaseException:
            self.close(0.0)
            raise

    def _opened(self, wire: Wire) -> None:
        wire.subscribe(self._names.news)
        wire.ask(self._told, None, b"GET", self._names.lease)

    def _beat(self, wire: Wire) -> None:
        if self._hub is None:
            wire.ask(self._told, None, b"GET", self._names.lease)
        else:
            wire.ask(self._counted, self._token, b"PUBSUB", b"NUMSUB", self._hub)

    def _told(self, _: object, hub: bytes | None) -> None:
        """Redis says which channel the server hears."""
        self._settle()
        if hub is not None and self._hub is None:
            self._join(hub)

    def _join(self, hub: bytes) -> None:
        wire = self._wire
        if wire is None:
            return
        self._token = mint()
        self._inbox = self._names.inboxes + self._token
        self._hub = hub
        wire.subscribe(self._inbox)
        if self._stale:  # it may be the same server as before our connection was lost
            wire.ask(self._ignore, None, b"PUBLISH", hub, LEAVE + self._stale)
        self._stale = self._token
        wire.ask(self._joined, self._token, b"PUBLISH", hub, JOIN + self._token)

    def _joined(self, token: bytes, readers: int) -> None:
        if token != self._token or self._hub is None:
            return
        if readers:
            self._way = self._hub, FRAME + token
            self._arrivals.append(Up(SERVER))
        else:
            self._leave("it is not there")

    def _counted(self, token: bytes, answer: list[Any]) -> None:
        if not answer[1] and token == self._token:
            self._deserted()

    def _published(self, route: Route, readers: int) -> None:
        if not readers and route is self._way:
            self._deserted()

    def _deserted(self) -> None:
        self._leave("the server left without a word")
        if self._wire is not None:
            self._wire.ask(self._told, None, b"GET", self._names.lease)

    def _leave(self, why: str) -> None:
        if self._wire is not None:
            self._wire.unsubscribe(self._inbox)
        self._lost(why)

    def _heard(self, channel: bytes, data: bytes) -> None:
        if channel == self._inbox and self._way:
            self._arrivals.append(Frame(SERVER, data))
        elif channel == self._names.news and data[1:].startswith(self._names.hubs):
            self._news(data[:1], data[1:])
        else:
            self.dropped += 1

    def _news(self, kind: bytes, hub: bytes) -> None:
        wire = self._wire
        if kind == b"-" and hub == self._hub:
            self._leave("the server closed")
        elif kind == b"+" and hub != self._hub and wire is not None:
            if self._hub is not None:
                wire.ask(self._ignore, None, b"PUBLISH", self._hub, LEAVE + self._token)
                self._leave("another server came")
            self._join(hub)

    def _route(self, peer: Peer) -> Route | None:
        return self._way if peer == SERVER else None

    def _lost(self, why: str) -> None:
        self._hub, self._token, self._inbox = None, b"", b""
        if self._way is not None:
            self._way = None
            self._down(SERVER, why)

    def _farewell(self, wire: Wire) -> None:
        if self._hub is not None:
            wire.ask(self._ignore, None, b"PUBLISH", self._hub, LEAVE + self._token)
