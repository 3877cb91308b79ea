"""The client's end over nng: requests a channel in the lobby, claims it, and starts again when it is lost."""

from __future__ import annotations

import contextlib
import time
from typing import Any, Final

import pynng

from remit.location import Location
from remit.transport import SERVER, Capabilities, Down, Frame, Peer, Sent, Up
from remit_nng.link import CLAIM_TIMEOUT_S, Channel, NngLink, close_dialing, receive_frame
from remit_nng.server import REQUEST, TOKEN_BYTES, channel_address, lobby_address

RECONNECT_S: Final = (0.01, 0.25)
"""Delay of the first new request, and the longest delay."""
MAX_REPLY_BYTES: Final = 256
NEVER_MS: Final = 86_400_000
"""Interval at which Req0 repeats a request by itself: never, since the link repeats it sooner."""


class ClientLink(NngLink):
    """The client's end. It is pausing, waiting for the lobby's reply, claiming its channel, or up."""

    def __init__(self, location: Location, capabilities: Capabilities) -> None:
        self._address = lobby_address(location, binding=False)  # raises BadLocation before anything is created
        super().__init__(location, capabilities)
        self._lobby: Any = None
        self._dialed_at = 0.0
        self._reply: int | None = None
        """Descriptor that is readable when the lobby has replied."""
        self._channel: Channel | None = None
        self._retry_delay = RECONNECT_S[0]
        try:
            self._dial_lobby()
        except BaseException:
            self._close_lobby()
            self._close_descriptors()
            raise

    def send(self, peer: Peer, frame: bytes) -> Sent:
        """Send one frame to the server."""
        self._check(frame)
        if self._channel is None or not self._channel.up:
            return Sent.GONE
        return self._send_on(self._channel, frame)

    def _dial_lobby(self) -> None:
        self.why = self.why or "no server answers: is a server there?"
        self._lobby = pynng.Req0(
            resend_time=NEVER_MS,
            recv_max_size=MAX_REPLY_BYTES,
            reconnect_time_min=int(RECONNECT_S[0] * 1000),
            reconnect_time_max=int(RECONNECT_S[1] * 1000),
        )
        self._lobby.add_post_pipe_connect_cb(self._events.callback(self._lobby, "lobby"))
        self._dialed_at = time.monotonic()
        # block=False: nng repeats a failed dial by itself. pynng's default logs a traceback first.
        self._lobby.dial(self._address, block=False)
        self.next_deadline = float("inf")

    def _send_request(self) -> None:
        self.next_deadline = time.monotonic() + CLAIM_TIMEOUT_S
        with contextlib.suppress(pynng.NNGException):
            self._lobby.send(REQUEST, block=False)
            self._reply = self._lobby.recv_fd
            self._add_reader(self._reply, self._handle_reply)

    def _handle_reply(self) -> None:
        try:
            reply = receive_frame(self._lobby)
        except pynng.TryAgain:
            return
        except pynng.NNGException:
            reply = b""
        self._close_lobby()
        token, where = reply[:TOKEN_BYTES], reply[TOKEN_BYTES:]
        if where.isalnum():  # a port or the end of a path, and nothing that leads to another place
            with contextlib.suppress(pynng.NNGException):
                self._open_channel(token, where.decode())
                return
        self.why = "the server has no room for another client now"
        self._schedule_retry()

    def _close_lobby(self) -> None:
        if self._reply is not None:
            self._remove_reader(self._reply)
            self._reply = None
        if self._lobby is not None:
            close_dialing(self._lobby, self._dialed_at)
            self._lobby = None

    def _open_channel(self, token: bytes, where: str) -> None:
        channel = Channel(self._events, token, self.capabilities.max_frame)
        self._channel = channel
        channel.dialed_at = time.monotonic()
        try:
            channel.socket.dial(channel_address(self.location, where), block=False)
        except pynng.NNGException:
            self._channel = None
            channel.close()
            raise
        self.next_deadline = time.monotonic() + CLAIM_TIMEOUT_S
        self._add_reader(channel.descriptor, self._read)

    def _claim(self, channel: Channel) -> None:
        if channel.send(channel.token) is Sent.ACCEPTED:
            channel.up = True
            self.why = ""
            self._retry_delay = RECONNECT_S[0]
            self.next_deadline = float("inf")
            self._arrivals.append(Up(SERVER))

    def _read(self) -> int:
        """Read frames of one turn; return their number."""
        channel = self._channel
        if channel is None:
            return 0
        frames = channel.read()
        for frame in frames:
            if frame == channel.token:
                self._lose_channel("the server closed it")
                return 0
            if channel.up:
                self._arrivals.append(Frame(SERVER, frame))
        return len(frames)

    def _lose_channel(self, why: str) -> None:
        channel, self._channel = self._channel, None
        if channel is None:
            return
        self._discard_channel(channel)
        self.why = f"the connection was lost: {why}"
        if channel.up:
            self._arrivals.append(Down(SERVER, why))
        self._schedule_retry()

    def _schedule_retry(self) -> None:
        self.next_deadline = time.monotonic() + self._retry_delay
        self._retry_delay = min(self._retry_delay * 2, RECONNECT_S[1])

    def _handle_event(self, subject: Any, event: str) -> None:
        if event == "lobby" and subject is self._lobby and self._reply is None:
            self._send_request()
        elif subject is self._channel and event == "connected" and self._channel is not None:
            self._claim(self._channel)
        elif subject is self._channel and event == "removed":
            while self._read():
                pass  # `Down` must follow the frames that nng received before the pipe was removed
            self._lose_channel("its connection has ended")

    def handle_deadline(self) -> None:
        """Retry: the lobby did not reply, the channel had no peer, or the retry delay has passed."""
        self.next_deadline = float("inf")
        if self._lobby is not None:
            self.why = "the server is connected, but does not answer: is it ticked?"
            if self._reply is None:
                self.why = "no server answers: is a server there?"
            self._close_lobby()
            self._schedule_retry()
        elif self._channel is not None:
            where = "" if self.location.path else "; nng+tcp needs one more port for each client: is there a firewall?"
            self._lose_channel(f"the server did not accept the connection{where}")
        else:
            self._dial_lobby()

    def _close_channels(self, deadline: float) -> None:
        self._close_lobby()
        channel = self._channel
        if channel is not None:
            self._drain([channel], deadline)
            channel.close()
