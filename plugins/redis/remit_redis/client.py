"""The client's end over Redis: finds the server's channel, joins it, and receives in an inbox that is used once."""

from __future__ import annotations

from time import monotonic
from typing import Any, Final

from remit.location import Location
from remit.transport import SERVER, Capabilities, Frame, Peer, Up
from remit_redis.connection import Address, RedisRefused, RespConnection
from remit_redis.link import FRAME, JOIN, LEAVE, ChannelNames, RedisLink, Route, new_token

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
        self._server_route: Route | None = None
        self._previous_token = b""

    def open(self) -> None:
        """Wait briefly for Redis, which may come up later. Raises TransportError if it refuses the client."""
        deadline = monotonic() + FIRST_REPLY_WAIT_S
        try:
            while not self._ready and self._last_error is None and monotonic() < deadline:
                self._process()
                if not self._ready and self._last_error is None:
                    self._sleep(deadline - monotonic())
            if isinstance(self._last_error, RedisRefused):
                raise self._last_error
        except BaseException:
            self.close(0.0)
            raise

    def _on_connected(self, connection: RespConnection) -> None:
        connection.subscribe(self._names.announcements)
        connection.send_command(self._on_lease, None, b"GET", self._names.lease)

    def _on_heartbeat(self, connection: RespConnection) -> None:
        if self._hub is None:
            connection.send_command(self._on_lease, None, b"GET", self._names.lease)
        else:
            connection.send_command(self._on_subscriber_count, self._token, b"PUBSUB", b"NUMSUB", self._hub)

    def _on_lease(self, _: object, hub: bytes | None) -> None:
        # The value of the lease is the channel of the server.
        self._mark_ready()
        if hub is not None and self._hub is None:
            self._join(hub)

    def _join(self, hub: bytes) -> None:
        connection = self.connection
        if connection is None:
            return
        self._token = new_token()
        self._inbox = self._names.inboxes + self._token
        self._hub = hub
        connection.subscribe(self._inbox)
        if self._previous_token:  # this server may still have the peer of the lost connection
            connection.send_command(self._ignore, None, b"PUBLISH", hub, LEAVE + self._previous_token)
        self._previous_token = self._token
        connection.send_command(self._on_joined, self._token, b"PUBLISH", hub, JOIN + self._token)

    def _on_joined(self, token: bytes, readers: int) -> None:
        if token != self._token or self._hub is None:
            return
        if readers:
            self._server_route = self._hub, FRAME + token
            self._arrivals.append(Up(SERVER))
        else:
            self._leave("it is not there")

    def _on_subscriber_count(self, token: bytes, answer: list[Any]) -> None:
        if not answer[1] and token == self._token:
            self._server_gone()

    def _on_published(self, route: Route, readers: int) -> None:
        if not readers and route is self._server_route:
            self._server_gone()

    def _server_gone(self) -> None:
        self._leave("the server is gone")
        if self.connection is not None:
            self.connection.send_command(self._on_lease, None, b"GET", self._names.lease)

    def _leave(self, why: str) -> None:
        if self.connection is not None:
            self.connection.unsubscribe(self._inbox)
        self._on_disconnected(why)

    def _on_message(self, channel: bytes, data: bytes) -> None:
        if channel == self._inbox and self._server_route:
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
                connection.send_command(self._ignore, None, b"PUBLISH", self._hub, LEAVE + self._token)
                self._leave("another server came")
            self._join(hub)

    def _route(self, peer: Peer) -> Route | None:
        return self._server_route if peer == SERVER else None

    def _on_disconnected(self, why: str) -> None:
        self._hub, self._token, self._inbox = None, b"", b""
        if self._server_route is not None:
            self._server_route = None
            self._down(SERVER, why)

    def _send_leave(self, connection: RespConnection) -> None:
        if self._hub is not None:
            connection.send_command(self._ignore, None, b"PUBLISH", self._hub, LEAVE + self._token)
