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
from collections.abc import Iterator
from typing import Any, Final

import pynng

from remit.errors import TransportError
from remit.location import Location
from remit.runtime_dirs import remove_dead_socket, socket_path
from remit.transport import Capabilities, Down, Frame, Peer, Sent, SocketFile, Up, tcp_address
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
        self._file: SocketFile | None = None
        with contextlib.ExitStack() as undo:
            if _uses_files(location):
                self._file = SocketFile(location.path)
                undo.callback(self._file.release)
                _remove_channel_sockets(location)
            super().__init__(location, capabilities)
            undo.callback(self._close_descriptors)
            self._lobby = pynng.Rep0(recv_max_size=MAX_REQUEST_BYTES)
            undo.callback(self._lobby.close)
            self._listener = _listen(self._lobby, address)
            if self._file is not None:
                self._file.mark_bound()
            else:
                self.location = location.replace(port=_port(self._listener))
            self._lobby_descriptor: int = self._lobby.recv_fd
            self._add_reader(self._lobby_descriptor, self._answer_requests)
            undo.pop_all()

    def send(self, peer: Peer, frame: bytes) -> Sent:
        """Send one frame to a peer."""
        self._check(frame)
        channel = self.channels.get(peer)  # type: ignore[call-overload]
        return Sent.GONE if channel is None else self._send_on(channel, frame)

    def check_location(self) -> None:
        """Listen again if the file of the lobby's socket was removed. Raises LocationInUse, TransportError."""
        self._check()
        if self._file is None or self._file.is_intact():
            return
        try:
            # First, since nng removes the file at a listener's path when that is closed. Clients ask the lobby again.
            self._listener.close()
            self._listener = _listen(self._lobby, lobby_address(self.location, binding=True))
            self._file.mark_bound()
        except (pynng.NNGException, OSError) as error:
            raise TransportError(f"cannot bind {self.location} again: {error}; does its folder exist?") from error

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
        with contextlib.nullcontext() if self._file is None else _kept_if_foreign(self._file):
            self._lobby.close()
        self._drain(list(self.channels.values()), deadline)
        for channel in (*self.channels.values(), *self.unclaimed):
            channel.close()
        if self._file is not None:
            self._file.release()


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


def _remove_channel_sockets(location: Location) -> None:
    """Remove the sockets of the channels of a dead server. Only the holder of the lock may call it."""
    for path in glob.glob(glob.escape(location.path + SUFFIX) + "[0-9a-f]" * 8):  # noqa: PTH207
        with contextlib.suppress(TransportError):  # not a dead socket, in spite of its name: it stays
            remove_dead_socket(path)


@contextlib.contextmanager
def _kept_if_foreign(file: SocketFile) -> Iterator[None]:
    """Keep the file at the path of a listener that the block closes if the file is another program's.

    nng removes whatever is at that path.
    """
    kept = f"{file.path}{SUFFIX}kept"
    try:
        if not file.is_own:
            os.link(file.path, kept)
    except OSError:  # There is no file, or the file system has no hard links.
        kept = ""
    yield
    if kept and os.path.lexists(kept):
        os.replace(kept, file.path)  # noqa: PTH105


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
