"""Server: a lobby that gives each newcomer a channel of its own, and the channels."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import socket
import time
from typing import Any, Final

import pynng

from remit.location import Location
from remit.transport import Capabilities, Down, FileLock, Frame, Peer, Sent, Up
from remit_nng import addresses as places
from remit_nng.channel import Channel, received
from remit_nng.link import CLAIM, Descriptor, NngLink

__all__ = ["ASK", "TOKEN", "ServerLink"]

ASK: Final = b"remit 1"
"""What a newcomer says in the lobby."""
TOKEN: Final = 16
"""Bytes of a token."""
LONGEST_WORD: Final = 1024
"""Bytes that may be said in the lobby; nng hangs up on whoever says more."""
GREETED: Final = 8
"""Newcomers answered before the channels have their turn."""
UNCLAIMED: Final = 128
"""Channels that may wait for their newcomers; a crowd beyond that is told to ask again."""

_peers = itertools.count(1)


class ServerLink(NngLink):
    """The server's end. A peer is the number of its channel."""

    def __init__(self, location: Location, capabilities: Capabilities, claim: FileLock | None) -> None:
        self._claim = claim
        self._channels: dict[int, Channel] = {}
        self._numbers: dict[Channel, int] = {}
        self._unclaimed: dict[Channel, None] = {}
        super().__init__(location, capabilities)
        try:
            self._lobby = pynng.Rep0(recv_max_size=LONGEST_WORD)
            try:
                self._open()
            except BaseException:
                self._lobby.close()
                raise
        except BaseException:
            self._discard()
            raise

    def send(self, peer: Peer, frame: bytes) -> Sent:
        """Offer one frame to a peer."""
        self._check(frame)
        channel = self._channels.get(peer)  # type: ignore[call-overload]
        return Sent.GONE if channel is None else self._offer(channel, frame)

    def _open(self) -> None:
        name = places.lobby_name(self.location, binding=True)
        if places.on_files(self.location):
            places.clear(self.location)
        listener = self._lobby.listen(name)
        places.keep_private(name)
        if not places.on_files(self.location):
            self.location = self.location.replace(port=_port(listener))
        self._lobby_descriptor = Descriptor(self._lobby.recv_fd)
        self._watch(self._lobby_descriptor, self._answer)

    def _answer(self) -> None:
        """Answer some of those in the lobby; an answer of nothing says: ask again."""
        with contextlib.suppress(pynng.NNGException):
            for _ in range(GREETED):
                answer = b""
                if received(self._lobby) == ASK and len(self._unclaimed) < UNCLAIMED:
                    with contextlib.suppress(pynng.NNGException, OSError):
                        answer = self._give()
                self._lobby.send(answer, block=False)

    def _give(self) -> bytes:
        """Open a channel for a newcomer; return its token and where it is."""
        channel = Channel(self._notes, secrets.token_bytes(TOKEN), self.capabilities.max_frame)
        try:
            where = self._listen(channel)
        except BaseException:
            channel.close()
            raise
        channel.deadline = time.monotonic() + CLAIM
        self._unclaimed[channel] = None
        self._due = min(self._due, channel.deadline)
        self._watch(channel, lambda: self._read(channel))
        return channel.token + where.encode()

    def _listen(self, channel: Channel) -> str:
        if not places.on_files(self.location):
            return str(_port(channel.socket.listen(places.channel_name(self.location, "0"))))
        where = secrets.token_hex(4)
        name = places.channel_name(self.location, where)
        channel.socket.listen(name)
        places.keep_private(name)
        return where

    def _read(self, channel: Channel) -> int:
        """Read some frames of a channel; return how many there were."""
        frames = channel.read()
        for frame in frames:
            if not channel.up:
                if frame != channel.token:
                    self._drop(channel, "it did not know the token")
                    return 0
                self._claimed(channel)
            elif frame == channel.token:
                self._drop(channel, "closed")
                return 0
            else:
                self._arrivals.append(Frame(self._numbers[channel], frame))
        return len(frames)

    def _claimed(self, channel: Channel) -> None:
        channel.up = True
        self._unclaimed.pop(channel, None)
        number = self._numbers[channel] = next(_peers)
        self._channels[number] = channel
        self._arrivals.append(Up(number))

    def _drop(self, channel: Channel, why: str) -> None:
        self._unwatch(channel)
        self._unclaimed.pop(channel, None)
        channel.close()
        number = self._numbers.pop(channel, None)
        if number is not None:
            del self._channels[number]
            self._arrivals.append(Down(number, why))

    def _noted(self, subject: Channel, what: str) -> None:
        if what == "removed" and (subject in self._numbers or subject in self._unclaimed):
            while self._read(subject):
                pass  # what came before it left
            if subject in self._numbers or subject in self._unclaimed:
                self._drop(subject, "its connection has ended")

    def _keep_time(self) -> None:
        now = time.monotonic()
        for channel in [channel for channel in self._unclaimed if channel.deadline <= now]:
            self._read(channel)  # it may have been claimed while nobody looked
            if channel in self._unclaimed:
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
