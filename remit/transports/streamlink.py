"""StreamLink: a link made of stream sockets: what the server's and the client's end of `unix:` share."""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from typing import Final

from remit.location import Location
from remit.transport import Arrival, Capabilities, Down, Frame, OwnedLink, Peer, Sent, Up, Wakeable
from remit.transports.attest import attest
from remit.transports.poller import Poller
from remit.transports.stream import Stream

__all__ = ["StreamLink"]

LONGEST_WAIT: Final = 24 * 3600.0
"""Seconds after which a wait returns in any case."""
READ_FIRST: Final = 16 * 1024
"""Bytes read in one go, until one read takes as many: whoever hears little needs no more memory."""
READ: Final = 256 * 1024
"""Bytes read in one go from then on."""


class StreamLink(OwnedLink):
    """What both ends have in common: streams, one poller for all, and what has arrived."""

    def __init__(self, location: Location, capabilities: Capabilities) -> None:
        self._arrivals: deque[Arrival] = deque()
        self._streams: dict[Peer, Stream] = {}
        self._watched: dict[int, Stream] = {}
        self._poller = Poller()
        self._buffer = memoryview(bytearray(READ_FIRST))
        self._due: float | None = None
        """When to try again what could not be done."""
        super().__init__(location, capabilities)  # Last: from here on a fork in another thread finds us whole.

    def send(self, peer: Peer, frame: bytes) -> Sent:
        """Offer one frame. Never blocks. Raises FrameTooLarge."""
        self._check(frame)
        stream = self._streams.get(peer)
        if stream is None:
            return Sent.GONE
        sent = stream.send(frame)
        self._settle(stream)
        return sent

    def receive(self) -> Arrival | None:
        """Return what arrived next, or None. Never blocks."""
        self._check()
        if not self._arrivals:
            self._turn(0.0)
        return self._arrivals.popleft() if self._arrivals else None

    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        """Return after ``timeout`` seconds, or when anything moves, or when ``waker`` is readable."""
        self._check()
        deadline = time.monotonic() + max(0.0, min(timeout, LONGEST_WAIT))
        try:
            self._poller.watch(waker)
            while not self._arrivals:
                left = deadline - time.monotonic()
                if self._turn(max(0.0, left)) or left <= 0:
                    return
        finally:
            self._poller.unwatch()

    def close(self, linger: float) -> None:
        """End the link; what was accepted may leave within ``linger`` seconds."""
        if self._ending():
            self._stop()
            self._flush(linger)
            self._discard()

    def after_fork(self) -> None:
        """In a forked child: give back the copies, so that the parent's end is an end although the child lives."""
        super().after_fork()
        self._discard()

    # -- streams -----------------------------------------------------------------------------------------------

    def _turn(self, timeout: float) -> bool:
        """Handle what happens within ``timeout`` seconds; True if anything did."""
        if self._due is not None:
            now = time.monotonic()
            if now >= self._due:
                self._due = None
                self._retry()
            if self._arrivals:
                return True
            if self._due is not None:
                timeout = min(timeout, max(0.0, self._due - now))
        events = self._poller.poll(timeout)
        for descriptor, event in events:
            stream = self._watched.get(descriptor)
            if stream is not None:
                self._serve(stream, event)
            else:
                self._other(descriptor)
        return bool(events)

    def _serve(self, stream: Stream, event: int) -> None:
        if event & select.POLLOUT:
            stream.flush()
        if event & ~select.POLLOUT:
            peer = stream.peer
            self._arrivals.extend([Frame(peer, data) for data in stream.read(self._buffer)])
            if stream.taken == len(self._buffer) < READ:
                self._buffer = memoryview(bytearray(READ))
        self._settle(stream)

    def _settle(self, stream: Stream) -> None:
        """Draw the consequences of what a stream has just done."""
        if stream.over:
            self._drop(stream)
        elif stream.watched is not (stream.backlog > 0):
            stream.watched = not stream.watched
            self._poller.modify(stream.socket, select.POLLIN | (select.POLLOUT if stream.watched else 0))

    def _add(self, connection: socket.socket, peer: Peer) -> None:
        connection.setblocking(False)
        stream = Stream(connection, peer, max_frame=self.capabilities.max_frame)
        self._streams[peer] = self._watched[connection.fileno()] = stream
        self._poller.register(connection, select.POLLIN)
        self._arrivals.append(Up(peer, attest(connection)))

    def _drop(self, stream: Stream) -> None:
        del self._streams[stream.peer], self._watched[stream.socket.fileno()]
        self._poller.unregister(stream.socket)
        stream.close()
        self._arrivals.append(Down(stream.peer, stream.ended))

    def _flush(self, linger: float) -> None:
        deadline = time.monotonic() + linger
        while waiting := [stream for stream in self._streams.values() if stream.backlog]:
            left = deadline - time.monotonic()
            if left <= 0:
                return
            poller = select.poll()
            for stream in waiting:
                poller.register(stream.socket, select.POLLOUT)
            poller.poll(left * 1000)
            for stream in waiting:
                stream.flush()

    def _discard(self) -> None:
        """Give back every descriptor, without a word to anybody."""
        for stream in self._streams.values():
            stream.socket.close()
        self._poller.close()

    # -- where the ends differ ---------------------------------------------------------------------------------

    def _retry(self) -> None:
        """Try again what could not be done."""

    def _other(self, descriptor: int) -> None:
        """Handle a descriptor that is no stream's."""

    def _stop(self) -> None:
        """Begin to close: nobody may come any more."""
