"""Server: a lobby that gives each newcomer a channel of its own, and the channels."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import socket
import time
from typing import Any

import pynng

from remit.claim import Claim
from remit.location import Location
from remit.transport import Capabilities, Down, Frame, Peer, Sent, Up
from remit_nng.channel import Channel
from remit_nng.link import CLAIM, NngLink

__all__ = ["ASK", "ServerLink"]

ASK = b"remit 1"
"""What a newcomer says in the lobby."""

_peers = itertools.count(1)


class ServerLink(NngLink):
    """The server's end. A peer is the number of its channel."""

    def __init__(self, location: Location, capabilities: Capabilities, place: str, claim: Claim | None) -> None:
        super().__init__(location, capabilities)
        self._claim = claim
        self._channels: dict[int, Channel] = {}
        self._numbers: dict[Channel, int] = {}
        self._unclaimed: dict[Channel, None] = {}
        if claim is not None:
            # The claim is ours: what lies here was left by a server that is gone.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(location.path)  # noqa: PTH108
        self._lobby = pynng.Rep0(recv_max_size=1024)
        try:
            listener = self._lobby.listen(place)
        except BaseException:
            self._lobby.close()
            self._notes.waker.close()
            raise
        if location.port is not None:
            self.location = location.replace(port=_port(listener))
        self._lobby_descriptor = _Descriptor(self._lobby.recv_fd)
        self._watch(self._lobby_descriptor, self._answer)

    def send(self, peer: Peer, frame: bytes) -> Sent:
        """Offer one frame to a peer."""
        self._check(frame)
        channel = self._channels.get(peer)  # type: ignore[call-overload]
        return Sent.GONE if channel is None else self._offer(channel, frame)

    def after_fork(self) -> None:
        """In a forked child: leave the path to the parent, too."""
        super().after_fork()
        if self._claim is not None:
            self._claim.forget()

    def _answer(self) -> None:
        """Answer those in the lobby, one after the other."""
        with contextlib.suppress(pynng.TryAgain):
            while True:
                asked = self._lobby.recv(block=False)
                answer = b""
                if asked == ASK:
                    with contextlib.suppress(pynng.NNGException):
                        answer = self._give()
                with contextlib.suppress(pynng.NNGException):
                    self._lobby.send(answer, block=False)

    def _give(self) -> bytes:
        """Open a channel for a newcomer; return where it is and its token."""
        channel = Channel(self._notes, secrets.token_bytes(16), self.capabilities.max_frame)
        try:
            if self.location.port is None:
                where = f"{self.location.path}.{secrets.token_hex(4)}"
                channel.socket.listen(f"ipc://{where}")
            else:
                host = f"[{self.location.host}]" if ":" in self.location.host else self.location.host
                listener = channel.socket.listen(f"tcp://{host}:0")
                where = str(_port(listener))
        except BaseException:
            channel.close()
            raise
        channel.deadline = time.monotonic() + CLAIM
        self._unclaimed[channel] = None
        self._due = min(self._due, channel.deadline)
        self._watch(channel, lambda: self._read(channel))
        return channel.token + where.encode()

    def _read(self, channel: Channel) -> None:
        for frame in channel.read():
            if not channel.up:
                if frame != channel.token:
                    self._drop(channel, "it did not know the token")
                    return
                self._claimed(channel)
            elif frame == channel.token:
                self._drop(channel, "closed")
                return
            else:
                self._arrivals.append(Frame(self._numbers[channel], frame))

    def _claimed(self, channel: Channel) -> None:
        channel.up = True
        self._unclaimed.pop(channel, None)
        number = self._numbers[channel] = next(_peers)
        self._channels[number] = channel
        self._arrivals.append(Up(number))

    def _drop(self, channel: Channel, why: str) -> None:
        self._unwatch(channel)
        self._full.discard(channel)
        self._unclaimed.pop(channel, None)
        channel.close()
        number = self._numbers.pop(channel, None)
        if number is not None:
            del self._channels[number]
            self._arrivals.append(Down(number, why))

    def _noted(self, subject: Channel, what: str) -> None:
        if what == "removed" and (subject in self._numbers or subject in self._unclaimed):
            self._read(subject)  # what came before it left
            if subject in self._numbers or subject in self._unclaimed:
                self._drop(subject, "its connection has ended")

    def _keep_time(self) -> None:
        now = time.monotonic()
        for channel in [channel for channel in self._unclaimed if channel.deadline <= now]:
            self._drop(channel, "nobody claimed it")
        self._due = min((channel.deadline for channel in self._unclaimed), default=float("inf"))

    def _leave(self, deadline: float) -> None:
        channels = list(self._numbers)
        self._unwatch(self._lobby_descriptor)
        self._lobby.close()
        self._finish(channels, deadline)
        for channel in (*self._numbers, *self._unclaimed):
            channel.close()
        if self._claim is not None:
            self._claim.release()


def _port(listener: Any) -> int:
    """Return the port that the system chose; nng has it in the network's order of bytes."""
    return socket.ntohs(listener.local_address.port)


class _Descriptor:
    """A descriptor that outlives the question for it: nng answers none about a closed socket."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor
