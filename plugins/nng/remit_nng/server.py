"""The server's end over nng: a Rep0 lobby that gives each client a Pair0 channel of its own.

Pair1 in polyamorous mode would need no lobby, but nng has deprecated it, and it loses frames in bursts.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import secrets
import socket
import time
from typing import Any, Final

import pynng

from remit.errors import TransportError
from remit.location import Location
from remit.runtime_dirs import remove_socket, socket_path
from remit.transport import Capabilities, Down, FileLock, Frame, Peer, Sent, Up, tcp_address
from remit_nng.link import CLAIM_TIMEOUT_S, Channel, NngLink, receive_frame

REQUEST: Final = b"remit 1"
"""A client's request for a channel."""
TOKEN_BYTES: Final = 16
MAX_REQUEST_BYTES: Final = 1024
"""nng closes the connection of a client that sends a larger request."""
REQUESTS_PER_TURN: Final = 8
"""Requests answered before the channels are served."""
SUFFIX: Final = "~"
"""Separates the lobby's path from the name of a channel, which has eight hexadecimal digits."""
MAX_UNCLAIMED: Final = 128
"""Largest number of channels without a client. Further clients get an empty reply and request again."""

_peer_numbers = itertools.count(1)


class ServerLink(NngLink):
    """The server's end. A peer token is the number of its channel."""

    def __init__(self, location: Location, capabilities: Capabilities) -> None:
        address = lobby_address(location, binding=True)  # raises BadLocation before anything is created
        self.channels: dict[int, Channel] = {}
        self.unclaimed: dict[Channel, None] = {}
        self._file_lock: FileLock | None = None
        with contextlib.ExitStack() as undo:
            if _uses_files(location):
                self._file_lock = FileLock(location.path)
                undo.callback(self._file_lock.release)
                _remove_stale_sockets(location)
            super().__init__(location, capabilities)
            undo.callback(self._close_descriptors)
            self._lobby = pynng.Rep0(recv_max_size=MAX_REQUEST_BYTES)
            undo.callback(self._lobby.close)
            listener = _listen(self._lobby, address)
            if not _uses_files(location):
                self.location = location.replace(port=_port(listener))
            self._lobby_descriptor: int = self._lobby.recv_fd
            self._add_reader(self._lobby_descriptor, self._answer_requests)
            undo.pop_all()

    def send(self, peer: Peer, frame: bytes) -> Sent:
        """Send one frame to a peer."""
        self._check(frame)
        channel = self.channels.get(peer)  # type: ignore[call-overload]
        return Sent.GONE if channel is None else self._send_on(channel, frame)

    def _answer_requests(self) -> None:
        with contextlib.suppress(pynng.NNGException):
            for _ in range(REQUESTS_PER_TURN):
                reply = b""
                if receive_frame(self._lobby) == REQUEST and len(self.unclaimed) < MAX_UNCLAIMED:
                    with contextlib.suppress(pynng.NNGException, OSError):
                        reply = self.open_channel()
                self._lobby.send(reply, block=False)

    def open_channel(self) -> bytes:
        """Open a channel for a new client; return the reply: its token, and its port or the end of its path."""
        channel = Channel(self._events, secrets.token_bytes(TOKEN_BYTES), self.capabilities.max_frame)
        where = secrets.token_hex(4) if _uses_files(self.location) else "0"
        try:
            listener = _listen(channel.socket, channel_address(self.location, where))
            if not _uses_files(self.location):
                where = str(_port(listener))
        except BaseException:
            channel.close()
            raise
        channel.deadline = time.monotonic() + CLAIM_TIMEOUT_S
        self.unclaimed[channel] = None
        self.next_deadline = min(self.next_deadline, channel.deadline)
        self._add_reader(channel.descriptor, lambda: self._read(channel))
        return channel.token + where.encode()

    def _read(self, channel: Channel) -> int:
        """Read a channel's frames of one turn; return their number."""
        frames = channel.read()
        for frame in frames:
            if not channel.up:
                if frame != channel.token:
                    self._remove_channel(channel, "it did not know the token")
                    return 0
                self._accept(channel)
            elif frame == channel.token:
                self._remove_channel(channel, "closed")
                return 0
            else:
                self._arrivals.append(Frame(channel.peer, frame))
        return len(frames)

    def _accept(self, channel: Channel) -> None:
        channel.up = True
        channel.peer = next(_peer_numbers)
        del self.unclaimed[channel]
        self.channels[channel.peer] = channel
        self._arrivals.append(Up(channel.peer))

    def _remove_channel(self, channel: Channel, why: str) -> None:
        self._discard_channel(channel)
        if channel.up:
            del self.channels[channel.peer]
            self._arrivals.append(Down(channel.peer, why))
        else:
            del self.unclaimed[channel]

    def _handle_event(self, subject: Channel, event: str) -> None:
        # Closing a channel causes this event, too.
        if event == "removed" and not subject.closed:
            while self._read(subject):
                pass  # `Down` must follow the frames that nng received before the pipe was removed
            if not subject.closed:
                self._remove_channel(subject, "its connection has ended")

    def handle_deadline(self) -> None:
        """Close the channels that were not claimed in time."""
        now = time.monotonic()
        for channel in [channel for channel in self.unclaimed if channel.deadline <= now]:
            self._read(channel)  # the token may have arrived while this thread was busy
            if channel in self.unclaimed:
                self._remove_channel(channel, "no client claimed it")
        self.next_deadline = min((channel.deadline for channel in self.unclaimed), default=float("inf"))

    def _close_channels(self, deadline: float) -> None:
        self._remove_reader(self._lobby_descriptor)
        self._lobby.close()
        self._drain(list(self.channels.values()), deadline)
        for channel in (*self.channels.values(), *self.unclaimed):
            channel.close()
        if self._file_lock is not None:
            self._file_lock.release()


def _uses_files(location: Location) -> bool:
    """Return whether a location is a path of the file system."""
    return location.scheme == "nng+ipc"


def lobby_address(location: Location, *, binding: bool) -> str:
    """Return the lobby's address as an nng URL. Raises BadLocation."""
    if _uses_files(location):
        return f"ipc://{socket_path(location, reserved=len(SUFFIX) + 8)}"
    return tcp_address(location, binding=binding)


def channel_address(location: Location, name: str) -> str:
    """Return the address of a channel: ``name`` is a port, or the end of a path."""
    if _uses_files(location):
        return f"ipc://{location.path}{SUFFIX}{name}"
    return f"{tcp_address(location, binding=True).rpartition(':')[0]}:{name}"


def _remove_stale_sockets(location: Location) -> None:
    """Remove the sockets of a dead server. Only the holder of the lock may call it. Raises TransportError."""
    remove_socket(location.path)
    for path in glob.glob(glob.escape(location.path + SUFFIX) + "[0-9a-f]" * 8):  # noqa: PTH207
        with contextlib.suppress(TransportError):  # not a socket, in spite of its name: it stays
            remove_socket(path)


def _listen(opened: Any, address: str) -> Any:
    """Return a listener of an nng socket. Only this user can connect to the file of an IPC address."""
    listener = opened.listen(address)
    if address.startswith("ipc://"):
        os.chmod(address.removeprefix("ipc://"), 0o600)  # noqa: PTH101
    return listener


def _port(listener: Any) -> int:
    """Return the port that the system chose."""
    # pynng 0.9 passes on the sockaddr's port in network byte order.
    return socket.ntohs(listener.local_address.port)
