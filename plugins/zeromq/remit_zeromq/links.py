"""The two ends over ZeroMQ: a ROUTER socket for the server, a DEALER socket for each client."""

from __future__ import annotations

import contextlib
import select
from collections import deque
from typing import Final, TypeAlias, cast

import zmq

from remit.errors import TransportError
from remit.location import Location
from remit.transport import SERVER, Arrival, Capabilities, Down, Frame, OwnedLink, Peer, Sent, SocketFile, Up, Wakeable
from remit_zeromq.context import (
    close_socket,
    connect_inproc,
    inherited,
    inproc_servers,
    open_monitor,
    read_monitor,
    unbind_inproc,
)

Socket: TypeAlias = "zmq.Socket[bytes]"

# Plain numbers: combining members of zmq's enums takes longer than the getsockopt() call that they are used for.
POLLIN: Final = int(zmq.POLLIN)
POLLOUT: Final = int(zmq.POLLOUT)
NOBLOCK: Final = int(zmq.NOBLOCK)
NOBLOCK_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)
EVENTS: Final = zmq.EVENTS
_ACCEPTED: Final = Sent.ACCEPTED  # Each access through the class costs 70 ns on CPython 3.11.

FULL_RETRY_S: Final = 0.01
"""Longest wait of a link that was full: a send may itself have consumed the edge that reports room."""
ABSENT_POLL_S: Final = 0.01
"""Interval at which an inproc client without a server checks for one."""
CLOSE_WAIT_MS: Final = 500
"""Time for ZeroMQ's thread to release a server's port after its socket is closed."""
MAX_KNOWN_PEERS: Final = 65_536
"""Peers of which a server remembers that it reported `Up`. Above this number the oldest is removed and may come up
again."""
ROUTING_ID_BYTES: Final = 5
"""Size of a routing id that ZeroMQ creates: a zero byte and a number. An id chosen by a peer never begins with zero."""


class ZeroMQLink(OwnedLink):
    """Base of both ends.

    ZeroMQ's descriptor is edge-triggered, and any call on the socket may consume the edge. So `receive` and `wait` ask
    the socket itself (zmq.EVENTS). If the last call found the socket empty, they poll the descriptor, which is cheaper.
    """

    def __init__(self, location: Location, capabilities: Capabilities, socket: Socket) -> None:
        super().__init__(location, capabilities)
        self.dropped = 0
        """Messages received that were not a frame of a valid peer."""
        self._socket = socket
        self._send = super(zmq.Socket, socket).send  # Without pyzmq's layer for options that no link uses.
        self._arrivals: deque[Arrival] = deque()
        self._poll = select.poll()
        self._poll.register(socket.fileno(), select.POLLIN)
        self._empty = False
        self._full = False

    def receive(self) -> Arrival | None:
        """Return the next arrival, or None."""
        self._check()
        if self._arrivals:
            return self._arrivals.popleft()
        if self._empty:
            if not self._poll.poll(0):
                return None
        elif not self._has_events():  # far cheaper than a failing recv(), which raises zmq.Again
            return None
        return self._read_arrival()

    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        """Wait up to ``timeout`` seconds for an arrival, room to send, or ``waker``."""
        self._check()
        if self._arrivals or ((self._full or not self._empty) and self._has_events()):
            return
        if self._full:
            timeout = min(timeout, FULL_RETRY_S)
        if waker is not None:
            self._poll.register(waker.fileno(), select.POLLIN)
        try:
            self._polling = True
            self._poll.poll(timeout * 1000)
            self._polling = False
        finally:
            if waker is not None:
                self._poll.unregister(waker.fileno())

    def __del__(self) -> None:
        # An interrupt has left the link without an owner. pyzmq would close the monitor, but perhaps before the socket,
        # and an event without a monitor to read it blocks libzmq's I/O thread, which all links share.
        if hasattr(self, "_socket") and not self._released:
            self.close(0.0)

    def after_fork(self) -> None:
        """Refuse all further use, and keep pyzmq from finalizing the parent's socket. Called in a forked child."""
        super().after_fork()
        inherited.append(self)

    def _has_events(self) -> bool:
        """Ask the socket whether it can be read. This consumes the edge of the descriptor."""
        readable = cast("int", self._socket.getsockopt(EVENTS)) & POLLIN
        self._empty = not readable
        return bool(readable)

    def _read_arrival(self) -> Arrival | None:
        """Read messages up to the first valid one. Others are counted and dropped."""
        while True:
            try:
                # Not recv_multipart(): to ask the socket after each part whether another one follows takes 1 us.
                part = self._socket.recv(NOBLOCK, copy=False)
            except zmq.Again:
                self._empty = True
                return None
            self._empty = False
            parts = [part]
            while part.more:
                part = self._socket.recv(NOBLOCK, copy=False)
                parts.append(part)
            arrival = self._parse(parts)
            if arrival is not None:
                return arrival
            self.dropped += 1

    def _parse(self, parts: list[zmq.Frame]) -> Arrival | None:
        raise NotImplementedError

    def _release(self, linger: float) -> None:
        close_socket(self._socket, linger)


class ServerLink(ZeroMQLink):
    """The server's end. A peer token is the routing id that ZeroMQ created for the connection."""

    def __init__(self, location: Location, capabilities: Capabilities, socket: Socket, file: SocketFile | None) -> None:
        self._file = file
        super().__init__(location, capabilities, socket)
        self._known: dict[bytes, None] = {}

    def send(self, peer: Peer, frame: bytes) -> Sent:
        """Send one frame to a peer."""
        self._check(frame)
        if not isinstance(peer, bytes):
            return Sent.GONE
        self._empty = self._full = False
        try:
            self._send(peer, NOBLOCK_MORE)
            self._send(frame, NOBLOCK)
        except zmq.Again:
            self._full = True
            return Sent.FULL
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            # ROUTER_MANDATORY reports a lost peer here and nowhere else: monitor events carry no routing id.
            if peer in self._known:
                del self._known[peer]
                self._arrivals.append(Down(peer, "its connection has ended"))
            return Sent.GONE
        return _ACCEPTED

    def check_location(self) -> None:
        """Bind again if the file of an ipc socket was removed. Raises LocationInUse, TransportError."""
        self._check()
        if self._file is None or self._file.is_intact():
            return
        try:
            # Without unbind(), which would end the connections. The former listener stays, and is never connected to.
            self._socket.bind(f"ipc://{self._file.path}")
            self._file.mark_bound()
        except (zmq.ZMQError, OSError) as error:
            raise TransportError(f"cannot bind {self.location} again: {error}; does its folder exist?") from error

    def _parse(self, parts: list[zmq.Frame]) -> Arrival | None:
        peer = parts[0].bytes
        # A routing id chosen by the peer could return with another connection, which a token must not.
        if len(parts) != 2 or len(peer) != ROUTING_ID_BYTES or peer[0]:
            return None
        frame = Frame(peer, parts[1].bytes)
        if peer in self._known:
            return frame
        if len(self._known) >= MAX_KNOWN_PEERS:
            del self._known[next(iter(self._known))]
        self._known[peer] = None
        self._arrivals.append(frame)
        return Up(peer)

    def _release(self, linger: float) -> None:
        if self.location.scheme == "zmq+inproc":
            unbind_inproc(self._socket, f"inproc://{self.location.host}{self.location.path}")
            super()._release(linger)
            return
        # unbind() would free the port immediately, but it also ends the connections and loses frames that have not left
        # yet. So close the socket, and wait until ZeroMQ's I/O thread has released the port.
        monitor = None
        with contextlib.suppress(zmq.ZMQError):  # out of descriptors: the port is free a moment after close() returns
            monitor = open_monitor(self._socket, zmq.EVENT_CLOSED)
        if self._file is not None:
            self._file.unlink()  # libzmq leaves the file of a closed ipc socket
        self._socket.close(linger=int(linger * 1000))
        if monitor is not None:
            monitor.poll(CLOSE_WAIT_MS)
            monitor.close(linger=0)
        if self._file is not None:
            self._file.release()
        close_socket(self._socket, linger)


class _DealerLink(ZeroMQLink):
    """Base of the client's ends. It accepts frames while it is connected, and reports `Up` and `Down`."""

    _up = False

    def send(self, peer: Peer, frame: bytes) -> Sent:
        """Send one frame to the server."""
        self._check(frame)
        if not self._up:
            return Sent.GONE
        self._empty = self._full = False
        try:
            self._send(frame, NOBLOCK)
        except zmq.Again:
            self._full = True
            return Sent.FULL
        return _ACCEPTED

    def _read_arrival(self) -> Arrival | None:
        if not self._up:
            self._update_connection()
        if self._arrivals:
            return self._arrivals.popleft()
        arrival = super()._read_arrival()
        if arrival is not None and self._up:
            return arrival
        self._update_connection()
        if arrival is not None:
            # The connection was established between the update and the read: report Up before its first frame.
            self._arrivals.append(arrival)
        return self._arrivals.popleft() if self._arrivals else None

    def _has_events(self) -> bool:
        if self._full and cast("int", self._socket.getsockopt(EVENTS)) & POLLOUT:
            self._empty = self._full = False
            return True
        # In this order: asking the socket may consume the edge that reports a change of the connection.
        if super()._has_events():
            return True
        self._update_connection()
        return bool(self._arrivals)

    def _parse(self, parts: list[zmq.Frame]) -> Arrival | None:
        return Frame(SERVER, parts[0].bytes) if len(parts) == 1 else None

    def _update_connection(self) -> None:
        """Report a connection that was established or lost since the last call."""

    def _connected(self) -> None:
        self._up = True
        self._arrivals.append(Up(SERVER))

    def _disconnected(self) -> None:
        # `Down` must follow the last frame of the connection that it ends.
        while (frame := super()._read_arrival()) is not None:
            self._arrivals.append(frame)
        self._up = False
        self._arrivals.append(Down(SERVER, "its connection has ended"))


class ClientLink(_DealerLink):
    """The client's end over TCP and IPC. A monitor reports the connection; ZeroMQ itself reconnects."""

    _monitor: Socket | None = None

    def __init__(self, location: Location, capabilities: Capabilities, socket: Socket, endpoint: str) -> None:
        super().__init__(location, capabilities, socket)
        self._monitor = open_monitor(socket, zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self._monitor_poll = select.poll()
        self._monitor_drained = False
        """True once the monitor was read until it was empty. Its edge-triggered descriptor is reliable from then on."""
        self._monitor_poll.register(self._monitor.fileno(), select.POLLIN)
        self._poll.register(self._monitor.fileno(), select.POLLIN)
        socket.connect(endpoint)

    def _update_connection(self) -> None:
        if self._monitor_drained and not self._monitor_poll.poll(0):
            return
        for event in read_monitor(cast("Socket", self._monitor)):
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._connected()
            elif self._up:
                self._disconnected()
        self._monitor_drained = True

    def _release(self, linger: float) -> None:
        if not self._socket.closed:
            self._socket.disable_monitor()
        if self._monitor is not None:
            self._monitor.close(linger=0)
        super()._release(linger)


class InprocClientLink(_DealerLink):
    """The client's end within a process, where ZeroMQ neither monitors nor restores a connection."""

    def __init__(self, location: Location, capabilities: Capabilities, socket: Socket, endpoint: str) -> None:
        super().__init__(location, capabilities, socket)
        self._endpoint = endpoint
        self._server: object = None

    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        """Wait up to ``timeout`` seconds for an arrival, room to send, or ``waker``."""
        super().wait(timeout if self._up else min(timeout, ABSENT_POLL_S), waker)

    def _read_arrival(self) -> Arrival | None:
        arrival = super()._read_arrival()
        # The read may have consumed the only edge that reports the server's end, so the next call must ask again.
        self._empty = False
        return arrival

    def _has_events(self) -> bool:
        pending = super()._has_events()
        self._empty = False  # as in _read_arrival
        return pending

    def _update_connection(self) -> None:
        if inproc_servers.get(self._endpoint) is self._server:
            return
        if self._server is not None:
            self._disconnected()
            with contextlib.suppress(zmq.ZMQError):  # libzmq may have removed the connection already
                self._socket.disconnect(self._endpoint)
        self._server = connect_inproc(self._socket, self._endpoint)
        if self._server is not None:
            self._connected()
