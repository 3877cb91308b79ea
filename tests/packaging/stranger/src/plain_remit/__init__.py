"""Remit over bare TCP: a length and the bytes. Written from the contract in `remit.transport` alone."""

from __future__ import annotations

import contextlib
import errno
import itertools
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from remit.errors import BadLocation, LocationInUse, TransportError
from remit.hookspecs import hookimpl
from remit.location import Location, read_size
from remit.transport import SERVER, Arrival, Capabilities, Down, Frame, OwnedLink, Peer, Sent, Up, Wakeable

HEAD = 4
"""Bytes of a frame's length."""
FULL = 1024 * 1024
"""Bytes that may wait to be written to one peer."""
READ = 256 * 1024
"""Bytes read in one go."""
RETRY = 0.05
"""Seconds between two attempts to connect."""

_tokens = itertools.count(1)


class Stream:
    """A connection, and what is half read and half written on it."""

    def __init__(self, connection: socket.socket, peer: Peer, *, connected: bool) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connection
        self.peer = peer
        self.connected = connected
        self.read = bytearray()
        self.unwritten = bytearray()


class PlainLink(OwnedLink):
    """One end: the server's if it has a socket to listen on, else the client's."""

    def __init__(self, location: Location, capabilities: Capabilities, listener: socket.socket | None) -> None:
        super().__init__(location, capabilities)
        self._listener = listener
        self._streams: dict[Peer, Stream] = {}
        self._arrivals: deque[Arrival] = deque()
        self._retry_at = 0.0

    def send(self, peer: Peer, frame: bytes) -> Sent:
        self._check(frame)
        stream = self._streams.get(peer)
        if stream is None or not stream.connected:
            return Sent.GONE
        if len(stream.unwritten) >= FULL:
            return Sent.FULL
        stream.unwritten += len(frame).to_bytes(HEAD, "big") + frame
        self._write(stream)
        return Sent.ACCEPTED

    def receive(self) -> Arrival | None:
        self._check()
        if not self._arrivals:
            self._turn(0.0)
        return self._arrivals.popleft() if self._arrivals else None

    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        self._check()
        if not self._arrivals:
            self._turn(timeout, waker)

    def close(self, linger: float) -> None:
        if self._ending():
            deadline = time.monotonic() + linger
            while (left := deadline - time.monotonic()) > 0 and any(each.unwritten for each in self._streams.values()):
                self._turn(left)
        for stream in self._streams.values():
            stream.socket.close()
        self._streams.clear()
        if self._listener is not None:
            self._listener.close()

    def _turn(self, timeout: float, waker: Wakeable | None = None) -> None:
        """Wait for the sockets, and then let each that is ready go on."""
        if self._listener is None and not self._streams:
            timeout = min(timeout, max(0.0, self._retry_at - time.monotonic()))
            self._dial()
        # Not epoll: a forked child would share its registrations with the parent.
        poller = select.poll()
        ready = {stream.socket.fileno(): stream for stream in self._streams.values()}
        for number, stream in ready.items():
            writing = not stream.connected or stream.unwritten
            poller.register(number, select.POLLIN | (select.POLLOUT if writing else 0))
        for other in (self._listener, waker):
            if other is not None:
                poller.register(other.fileno(), select.POLLIN)
        for number, event in poller.poll(max(0.0, timeout) * 1000):
            if number in ready:
                self._go_on(ready[number], event)
            elif self._listener is not None and number == self._listener.fileno():
                self._accept()

    def _go_on(self, stream: Stream, event: int) -> None:
        if not stream.connected:
            if stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._drop(stream, "refused")
                return
            self._up(stream)
        if event & ~select.POLLOUT:
            self._read(stream)
        self._write(stream)

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            self._up(Stream(connection, next(_tokens), connected=True))

    def _dial(self) -> None:
        if time.monotonic() < self._retry_at:
            return
        self._retry_at = time.monotonic() + RETRY
        family = socket.AF_INET6 if ":" in self.location.host else socket.AF_INET
        stream = Stream(socket.socket(family, socket.SOCK_STREAM), SERVER, connected=False)
        if stream.socket.connect_ex((self.location.host, self.location.port)) in (0, errno.EINPROGRESS):
            self._streams[SERVER] = stream
        else:
            stream.socket.close()

    def _up(self, stream: Stream) -> None:
        stream.connected = True
        self._streams[stream.peer] = stream
        self._arrivals.append(Up(stream.peer))

    def _read(self, stream: Stream) -> None:
        try:
            data = stream.socket.recv(READ)
        except BlockingIOError:
            return
        except OSError as error:
            self._drop(stream, str(error))
            return
        stream.read += data
        while len(stream.read) >= HEAD:
            size = int.from_bytes(stream.read[:HEAD], "big")
            if size > self.capabilities.max_frame:
                self._drop(stream, "a frame over max_frame")
                return
            if len(stream.read) < HEAD + size:
                break
            self._arrivals.append(Frame(stream.peer, bytes(stream.read[HEAD : HEAD + size])))
            del stream.read[: HEAD + size]
        if not data:
            self._drop(stream, "closed by the other end")

    def _write(self, stream: Stream) -> None:
        if not stream.unwritten or stream.peer not in self._streams:
            return
        try:
            del stream.unwritten[: stream.socket.send(stream.unwritten)]
        except BlockingIOError:
            return
        except OSError:
            stream.unwritten.clear()  # what can still be read is read before it is down

    def _drop(self, stream: Stream, why: str) -> None:
        stream.socket.close()
        if self._streams.get(stream.peer) is stream:
            del self._streams[stream.peer]
            if stream.connected:
                self._arrivals.append(Down(stream.peer, why))


class PlainTransport:
    """``plain+tcp://address:port``."""

    capabilities = Capabilities(max_frame=16 * 1024 * 1024, crosses_hosts=True)
    options: Mapping[str, Callable[[str], Any]] = {"max_frame": read_size}

    def bind(self, location: Location) -> PlainLink:
        capabilities = self._capable(location)
        family = socket.AF_INET6 if ":" in location.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((location.host, location.port))
            listener.listen(1024)
        except OSError as error:
            listener.close()
            kind = LocationInUse if error.errno == errno.EADDRINUSE else TransportError
            raise kind(f"cannot listen on {location}: {error.strerror}") from error
        return PlainLink(location.replace(port=listener.getsockname()[1]), capabilities, listener)

    def connect(self, location: Location) -> PlainLink:
        return PlainLink(location, self._capable(location), None)

    def _capable(self, location: Location) -> Capabilities:
        if not location.host or location.port is None or location.path:
            raise BadLocation(f"{location} is no address and port")
        return replace(self.capabilities, **location.read(self.options))


TRANSPORT = PlainTransport()


@hookimpl
def remit_transport(scheme: str) -> PlainTransport | None:
    return TRANSPORT if scheme == "plain+tcp" else None
