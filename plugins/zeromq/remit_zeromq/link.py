"""Link: one ROUTER or DEALER socket, read until it is empty and waited for by descriptor."""

from __future__ import annotations

import select
import struct
from collections import deque
from typing import Final, cast

import zmq

from remit.claim import Claim
from remit.location import Location
from remit.transport import SERVER, Arrival, Capabilities, Down, Frame, OwnedLink, Peer, Sent, Up, Wakeable
from remit_zeromq import context

__all__ = ["ClientLink", "ServerLink"]

_MONITORED: Final = struct.Struct("=HI")
"""An event's number and value, as ZeroMQ's monitor tells it. Not by pyzmq's own reader, which imports asyncio: 20 ms."""
FULL_WAIT: Final = 0.01
"""Seconds between two tries to send to a peer that was full: a send may itself have taken the sign that it is not."""
UNBIND: Final = 500
"""Milliseconds that ZeroMQ's thread may take to give a server's place free."""
KNOWN: Final = 65_536
"""Peers of which a server knows that it has said `Up`; the oldest is forgotten first, and may come up once more."""


class _Link(OwnedLink):
    """What both ends share.

    ZeroMQ's descriptor is edge-triggered: it tells of news since the socket was last asked, and any call may take the
    news. So `receive` asks the socket itself unless nothing was called since it was last found empty, and `wait`
    asks for its events before it blocks, on descriptors only.
    """

    def __init__(self, location: Location, capabilities: Capabilities, socket: zmq.Socket[bytes]) -> None:
        super().__init__(location, capabilities)
        self._socket = socket
        self._arrivals: deque[Arrival] = deque()
        self._poll = select.poll()
        self._poll.register(socket.fileno(), select.POLLIN)
        self._empty = False
        self._full = False

    def receive(self) -> Arrival | None:
        """Return what arrived next, or None."""
        self._check()
        if self._arrivals:
            return self._arrivals.popleft()
        if self._empty and not self._poll.poll(0):
            return None
        return self._look()

    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        """Return after ``timeout`` seconds, or earlier if something is there to be done."""
        self._check()
        if self._arrivals or self._pending():
            return
        if self._full:
            timeout = min(timeout, FULL_WAIT)
        if waker is not None:
            self._poll.register(waker.fileno(), select.POLLIN)
        try:
            self._poll.poll(timeout * 1000)
        finally:
            if waker is not None:
                self._poll.unregister(waker.fileno())

    def close(self, linger: float) -> None:
        """End the link; frames already accepted may leave for ``linger`` seconds."""
        if self._ending():
            self._end(linger)

    def after_fork(self) -> None:
        """In a forked child: refuse, and keep the parent's socket from being collected."""
        super().after_fork()
        context.abandon(self)

    def _pending(self) -> bool:
        """Ask the socket itself; the answer may be the last sign of what has come."""
        readable = cast(int, self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN
        self._empty = not readable
        return bool(readable)

    def _look(self) -> Arrival | None:
        """Read one message; what is no frame is dropped."""
        while True:
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                self._empty = True
                return None
            self._empty = False
            arrival = self._arrival(parts)
            if arrival is not None:
                return arrival

    def _arrival(self, parts: list[bytes]) -> Arrival | None:
        raise NotImplementedError

    def _end(self, linger: float) -> None:
        self._socket.close(linger=int(linger * 1000))
        context.release(linger)


class ServerLink(_Link):
    """The server's end. A peer is the routing id that ZeroMQ made for its connection."""

    def __init__(
        self, location: Location, capabilities: Capabilities, socket: zmq.Socket[bytes], claim: Claim | None
    ) -> None:
        super().__init__(location, capabilities, socket)
        self._claim = claim
        self._known: dict[bytes, None] = {}

    def send(self, peer: Peer, frame: bytes) -> Sent:
        """Offer one frame to a peer."""
        self._check(frame)
        if not isinstance(peer, bytes):
            return Sent.GONE
        self._empty = self._full = False
        try:
            self._socket.send(peer, zmq.NOBLOCK | zmq.SNDMORE)
            self._socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            self._full = True
            return Sent.FULL
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            if peer in self._known:
                del self._known[peer]
                self._arrivals.append(Down(peer, "its connection has ended"))
            return Sent.GONE
        return Sent.ACCEPTED

    def after_fork(self) -> None:
        """In a forked child: leave the path to the parent, too."""
        super().after_fork()
        if self._claim is not None:
            self._claim.forget()

    def _arrival(self, parts: list[bytes]) -> Arrival | None:
        if len(parts) != 2:
            return None
        peer, data = parts
        if peer in self._known:
            return Frame(peer, data)
        if len(self._known) >= KNOWN:
            del self._known[next(iter(self._known))]
        self._known[peer] = None
        self._arrivals.append(Frame(peer, data))
        return Up(peer)

    def _end(self, linger: float) -> None:
        self._unbind(linger)
        super()._end(linger)
        if self._claim is not None:
            self._claim.release()

    def _unbind(self, linger: float) -> None:
        """Give the place free before the claim: ZeroMQ's thread closes the port, or unlinks the path, in its own time."""
        endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        if self.location.scheme == "zmq+inproc":
            self._socket.unbind(endpoint)
            return
        monitor = self._socket.get_monitor_socket(zmq.EVENT_CLOSED)
        self._socket.setsockopt(zmq.LINGER, int(linger * 1000))
        self._socket.unbind(endpoint)
        monitor.poll(UNBIND)
        self._socket.disable_monitor()
        monitor.close(linger=0)


class ClientLink(_Link):
    """The client's end. A monitor tells when the connection comes and goes; ZeroMQ itself makes it anew."""

    def __init__(
        self, location: Location, capabilities: Capabilities, socket: zmq.Socket[bytes], endpoint: str
    ) -> None:
        super().__init__(location, capabilities, socket)
        self._up = False
        self._monitor: zmq.Socket[bytes] | None = None
        if location.scheme == "zmq+inproc":
            # Within a process there is no connection to be monitored: frames find out.
            self._connected()
        else:
            self._monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
            self._poll.register(self._monitor.fileno(), select.POLLIN)
        socket.connect(endpoint)

    def send(self, peer: Peer, frame: bytes) -> Sent:
        """Offer one frame to the server."""
        self._check(frame)
        if not self._up:
            return Sent.GONE
        self._empty = self._full = False
        try:
            self._socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            self._full = True
            return Sent.FULL
        return Sent.ACCEPTED

    def _look(self) -> Arrival | None:
        self._hear_monitor()
        if self._arrivals:
            return self._arrivals.popleft()
        arrival = super()._look()
        if arrival is not None and not self._up:
            # It came between the two looks, with the connection that the monitor tells of.
            self._hear_monitor()
            self._arrivals.append(arrival)
            return self._arrivals.popleft()
        return arrival

    def _pending(self) -> bool:
        self._hear_monitor()
        return bool(self._arrivals) or super()._pending()

    def _arrival(self, parts: list[bytes]) -> Arrival | None:
        return Frame(SERVER, parts[0]) if len(parts) == 1 else None

    def _hear_monitor(self) -> None:
        while self._monitor is not None:
            try:
                event, _ = _MONITORED.unpack(self._monitor.recv_multipart(zmq.NOBLOCK)[0])
            except zmq.Again:
                return
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._connected()
            elif event == zmq.EVENT_DISCONNECTED and self._up:
                self._disconnected()

    def _connected(self) -> None:
        self._up = True
        self._arrivals.append(Up(SERVER))

    def _disconnected(self) -> None:
        """Take what the old connection brought before saying that it is gone."""
        while (frame := super()._look()) is not None:
            self._arrivals.append(frame)
        self._up = False
        self._arrivals.append(Down(SERVER, "its connection has ended"))

    def _end(self, linger: float) -> None:
        if self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
        super()._end(linger)
