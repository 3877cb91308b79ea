"""Client: asks in the lobby for a channel, claims it, and begins again when it is lost."""

from __future__ import annotations

import contextlib
import select
import time
from typing import Any, Final

import pynng

from remit.location import Location
from remit.transport import SERVER, Capabilities, Down, Frame, Peer, Sent, Up
from remit_nng.channel import Channel
from remit_nng.link import CLAIM, NngLink
from remit_nng.server import ASK

__all__ = ["ClientLink"]

RECONNECT: Final = (0.01, 0.25)
"""Seconds before a client asks again, at first and at the most."""
TOKEN: Final = 16
"""Bytes of a token."""


class ClientLink(NngLink):
    """The client's end. Four states: pausing; asking in the lobby; claiming its channel; up."""

    def __init__(self, location: Location, capabilities: Capabilities, place: str) -> None:
        super().__init__(location, capabilities)
        self._place = place
        self._lobby: Any = None
        self._asked = False
        self._channel: Channel | None = None
        self._pause = RECONNECT[0]
        self._ask()

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
            resend_time=86_400_000,
            recv_max_size=4096,
            reconnect_time_min=int(RECONNECT[0] * 1000),
            reconnect_time_max=int(RECONNECT[1] * 1000),
        )
        self._asked = False
        self._lobby.add_post_pipe_connect_cb(self._notes.on(self._lobby, "lobby"))
        self._lobby.dial(self._place, block=False)
        self._due = float("inf")

    def _say(self) -> None:
        with contextlib.suppress(pynng.NNGException):
            self._lobby.send(ASK, block=False)
            self._asked = True
            self._due = time.monotonic() + CLAIM
            self._poller.register(_Fd(self._lobby.recv_fd), select.POLLIN)
            self._readers[self._lobby.recv_fd] = self._answered

    def _answered(self) -> None:
        try:
            answer = self._lobby.recv(block=False)
        except pynng.TryAgain:
            return
        except pynng.NNGException:
            answer = b""
        self._leave_lobby()
        if len(answer) <= TOKEN:
            self._retry()
            return
        self._claim(answer[:TOKEN], answer[TOKEN:].decode())

    def _leave_lobby(self) -> None:
        if self._lobby is None:
            return
        if self._asked:
            descriptor = self._lobby.recv_fd
            if self._readers.pop(descriptor, None) is not None:
                self._poller.unregister(_Fd(descriptor))
        self._lobby.close()
        self._lobby = None

    # -- claiming ----------------------------------------------------------------------------------------------

    def _claim(self, token: bytes, where: str) -> None:
        host = f"[{self.location.host}]" if ":" in self.location.host else self.location.host
        channel = Channel(self._notes, token, self.capabilities.max_frame)
        self._channel = channel
        self._due = time.monotonic() + CLAIM
        self._watch(channel, self._read)
        channel.socket.dial(f"ipc://{where}" if self.location.path else f"tcp://{host}:{where}", block=False)

    def _connected(self, channel: Channel) -> None:
        if channel.send(channel.token) is Sent.ACCEPTED:
            channel.up = True
            self._pause = RECONNECT[0]
            self._due = float("inf")
            self._arrivals.append(Up(SERVER))

    def _read(self) -> None:
        channel = self._channel
        if channel is None:
            return
        for frame in channel.read():
            if frame == channel.token:
                self._lose("the server closed it")
                return
            self._arrivals.append(Frame(SERVER, frame))

    def _lose(self, why: str) -> None:
        channel, self._channel = self._channel, None
        if channel is None:
            return
        self._unwatch(channel)
        self._full.discard(channel)
        channel.close()
        if channel.up:
            self._arrivals.append(Down(SERVER, why))
        self._retry()

    def _retry(self) -> None:
        self._due = time.monotonic() + self._pause
        self._pause = min(self._pause * 2, RECONNECT[1])

    # -- what nng and the clock say ----------------------------------------------------------------------------

    def _noted(self, subject: Any, what: str) -> None:
        if what == "lobby" and subject is self._lobby and not self._asked:
            self._say()
        elif subject is self._channel and what == "connected" and self._channel is not None:
            self._connected(self._channel)
        elif subject is self._channel and what == "removed":
            self._read()  # what came before it left
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


class _Fd:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor
