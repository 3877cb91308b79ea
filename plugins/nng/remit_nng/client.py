"""Client: asks in the lobby for a channel, claims it, and begins again when it is lost."""

from __future__ import annotations

import contextlib
import time
from typing import Any, Final

import pynng

from remit.location import Location
from remit.transport import SERVER, Capabilities, Down, Frame, Peer, Sent, Up
from remit_nng import addresses as places
from remit_nng.channel import Channel, received
from remit_nng.link import CLAIM, Descriptor, NngLink
from remit_nng.server import ASK, TOKEN

__all__ = ["ClientLink"]

RECONNECT: Final = (0.01, 0.25)
"""Seconds before a client asks again, at first and at the most."""
LONGEST_ANSWER: Final = 256
"""Bytes that a lobby may answer."""
NEVER: Final = 86_400_000
"""Milliseconds after which nng would ask again by itself: we do, and sooner."""


class ClientLink(NngLink):
    """The client's end. Four states: pausing; asking in the lobby; claiming its channel; up."""

    def __init__(self, location: Location, capabilities: Capabilities) -> None:
        super().__init__(location, capabilities)
        self._place = places.lobby_name(location, binding=False)
        self._lobby: Any = None
        self._asked: Descriptor | None = None
        self._channel: Channel | None = None
        self._pause = RECONNECT[0]
        try:
            self._ask()
        except BaseException:
            self._leave_lobby()
            self._discard()
            raise

    def send(self, peer: Peer, frame: bytes) -> Sent:
        """Offer one frame to the server."""
        self._check(frame)
        if self._channel is None or not self._channel.up:
            return Sent.GONE
        return self._offer(self._channel, frame)

    # -- asking ------------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        """Dial the lobby; nng does that, and again and again, by itself."""
        self._lobby = pynng.Req0(
            resend_time=NEVER,
            recv_max_size=LONGEST_ANSWER,
            reconnect_time_min=int(RECONNECT[0] * 1000),
            reconnect_time_max=int(RECONNECT[1] * 1000),
        )
        self._lobby.add_post_pipe_connect_cb(self._notes.on(self._lobby, "lobby"))
        self._lobby.dial(self._place, block=False)
        self._due = float("inf")

    def _say(self) -> None:
        self._due = time.monotonic() + CLAIM
        with contextlib.suppress(pynng.NNGException):
            self._lobby.send(ASK, block=False)
            self._asked = Descriptor(self._lobby.recv_fd)
            self._watch(self._asked, self._answered)

    def _answered(self) -> None:
        try:
            answer = received(self._lobby)
        except pynng.TryAgain:
            return
        except pynng.NNGException:
            answer = b""
        self._leave_lobby()
        token, where = answer[:TOKEN], answer[TOKEN:]
        if where.isalnum():  # a port or the end of a path, and nothing that leads elsewhere
            with contextlib.suppress(pynng.NNGException):
                self._claim(token, where.decode())
                return
        self._retry()

    def _leave_lobby(self) -> None:
        if self._asked is not None:
            self._unwatch(self._asked)
            self._asked = None
        if self._lobby is not None:
            self._lobby.close()
            self._lobby = None

    # -- claiming ----------------------------------------------------------------------------------------------

    def _claim(self, token: bytes, where: str) -> None:
        channel = Channel(self._notes, token, self.capabilities.max_frame)
        try:
            channel.socket.dial(places.channel_name(self.location, where), block=False)
        except pynng.NNGException:
            channel.close()
            raise
        self._channel = channel
        self._due = time.monotonic() + CLAIM
        self._watch(channel, self._read)

    def _connected(self, channel: Channel) -> None:
        if channel.send(channel.token) is Sent.ACCEPTED:
            channel.up = True
            self._pause = RECONNECT[0]
            self._due = float("inf")
            self._arrivals.append(Up(SERVER))

    def _read(self) -> int:
        """Read some frames; return how many there were."""
        channel = self._channel
        if channel is None:
            return 0
        frames = channel.read()
        for frame in frames:
            if frame == channel.token:
                self._lose("the server closed it")
                return 0
            if channel.up:
                self._arrivals.append(Frame(SERVER, frame))
        return len(frames)

    def _lose(self, why: str) -> None:
        channel, self._channel = self._channel, None
        if channel is None:
            return
        self._unwatch(channel)
        channel.close()
        if channel.up:
            self._arrivals.append(Down(SERVER, why))
        self._retry()

    def _retry(self) -> None:
        self._due = time.monotonic() + self._pause
        self._pause = min(self._pause * 2, RECONNECT[1])

    # -- what nng and the clock say ----------------------------------------------------------------------------

    def _noted(self, subject: Any, what: str) -> None:
        if what == "lobby" and subject is self._lobby and self._asked is None:
            self._say()
        elif subject is self._channel and what == "connected" and self._channel is not None:
            self._connected(self._channel)
        elif subject is self._channel and what == "removed":
            while self._read():
                pass  # what came before it left
            self._lose("its connection has ended")

    def _keep_time(self) -> None:
        """Three cases: the lobby did not answer; nobody was at the channel; the pause is over."""
        self._due = float("inf")
        if self._lobby is not None:
            self._leave_lobby()
            self._retry()
        elif self._channel is not None:
            self._lose("nobody was there")
        else:
            self._ask()

    def _leave(self, deadline: float) -> None:
        self._leave_lobby()
        channel = self._channel
        if channel is not None:
            self._finish([channel], deadline)
            channel.close()
