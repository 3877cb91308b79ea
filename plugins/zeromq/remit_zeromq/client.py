"""Client: the end that reaches one server, a DEALER socket."""

from __future__ import annotations

import select
from typing import Final, cast

import zmq

from remit.location import Location
from remit.transport import SERVER, Arrival, Capabilities, Down, Frame, Peer, Sent, Up, Wakeable
from remit_zeromq import addresses as inproc
from remit_zeromq.link import POLLOUT, ZeroMQLink, reported, watch

__all__ = ["ClientLink", "NeighbourLink"]

ABSENT_WAIT: Final = 0.01
"""Seconds between two looks for a server within the process."""


class _DealerLink(ZeroMQLink):
    """What both kinds of clients share: a connection that comes and goes."""

    _up = False

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
        self._hear()
        if self._arrivals:
            return self._arrivals.popleft()
        arrival = super()._look()
        if arrival is not None and not self._up:
            # It came between the two looks, with the connection that is only now heard of.
            self._hear()
            self._arrivals.append(arrival)
            return self._arrivals.popleft()
        return arrival

    def _pending(self) -> bool:
        if self._full and cast("int", self._socket.getsockopt(zmq.EVENTS)) & POLLOUT:
            self._empty = self._full = False
            return True
        # In this order, since asking the socket may take the sign that there is something to hear.
        readable = super()._pending()
        self._hear()
        return readable or bool(self._arrivals)

    def _arrival(self, parts: list[bytes]) -> Arrival | None:
        return Frame(SERVER, parts[0]) if len(parts) == 1 else None

    def _hear(self) -> None:
        """Find out whether the connection has come or gone."""
        raise NotImplementedError

    def _connected(self) -> None:
        self._up = True
        self._arrivals.append(Up(SERVER))

    def _disconnected(self) -> None:
        """Take what the old connection brought before saying that it is gone."""
        while (frame := super()._look()) is not None:
            self._arrivals.append(frame)
        self._up = False
        self._arrivals.append(Down(SERVER, "its connection has ended"))


class ClientLink(_DealerLink):
    """The client's end. A monitor tells when the connection comes and goes; ZeroMQ itself makes it anew."""

    def __init__(
        self, location: Location, capabilities: Capabilities, socket: zmq.Socket[bytes], endpoint: str
    ) -> None:
        super().__init__(location, capabilities, socket)
        self._reports = watch(socket, zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self._reported = select.poll()
        self._heard_all = False
        """Whether the monitor was found empty once: from then on its descriptor tells whenever it is not."""
        try:
            self._reported.register(self._reports.fileno(), select.POLLIN)
            self._poll.register(self._reports.fileno(), select.POLLIN)
            socket.connect(endpoint)
        except zmq.ZMQError:
            self._reports.close(linger=0)
            raise

    def _hear(self) -> None:
        if self._heard_all and not self._reported.poll(0):
            return
        for event in reported(self._reports):
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._connected()
            elif self._up:
                self._disconnected()
        self._heard_all = True

    def _end(self, linger: float) -> None:
        self._socket.disable_monitor()
        self._reports.close(linger=0)
        super()._end(linger)


class NeighbourLink(_DealerLink):
    """The client's end within a process, where ZeroMQ neither monitors a connection nor makes it anew."""

    def __init__(
        self, location: Location, capabilities: Capabilities, socket: zmq.Socket[bytes], endpoint: str
    ) -> None:
        super().__init__(location, capabilities, socket)
        self._endpoint = endpoint
        self._met: object = None

    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        """Return after ``timeout`` seconds, or earlier if something is there to be done."""
        super().wait(timeout if self._up else min(timeout, ABSENT_WAIT), waker)

    def _look(self) -> Arrival | None:
        arrival = super()._look()
        # To have read may have taken the only sign that the server went: the next look is not to be left out.
        self._empty = False
        return arrival

    def _pending(self) -> bool:
        pending = super()._pending()
        self._empty = False  # as above
        return pending

    def _hear(self) -> None:
        if inproc.bound(self._endpoint) is self._met:
            return
        if self._met is not None:
            self._disconnected()
            inproc.leave(self._socket, self._endpoint)
        self._met = inproc.join(self._socket, self._endpoint)
        if self._met is not None:
            self._connected()
