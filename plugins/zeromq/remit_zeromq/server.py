"""Server: the end that many clients reach, a ROUTER socket."""

from __future__ import annotations

import contextlib
from typing import Final

import zmq

from remit.location import Location
from remit.transport import Arrival, Capabilities, Down, FileLock, Frame, Peer, Sent, Up
from remit_zeromq import addresses as inproc
from remit_zeromq import link as context
from remit_zeromq.addresses import remove_socket
from remit_zeromq.link import ZeroMQLink, watch

__all__ = ["ServerLink"]

CLOSED: Final = 500
"""Milliseconds that ZeroMQ's thread may take to give a server's place free."""
KNOWN: Final = 65_536
"""Peers of which a server knows that it has said `Up`; the oldest is forgotten first, and may come up once more."""
MINTED: Final = 5
"""Bytes of a routing id that ZeroMQ itself made for a connection: a zero, which no peer may choose, and a number."""


_NOBLOCK_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)


class ServerLink(ZeroMQLink):
    """The server's end. A peer is the routing id that ZeroMQ made for its connection."""

    def __init__(
        self, location: Location, capabilities: Capabilities, socket: zmq.Socket[bytes], claim: FileLock | None
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
            self._socket.send(peer, _NOBLOCK_MORE)
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

    def _arrival(self, parts: list[bytes]) -> Arrival | None:
        peer = parts[0]
        # A routing id that a peer chose may come back with another connection, and a token must not.
        if len(parts) != 2 or len(peer) != MINTED or peer[0]:
            return None
        frame = Frame(peer, parts[1])
        if peer in self._known:
            return frame
        if len(self._known) >= KNOWN:
            del self._known[next(iter(self._known))]
        self._known[peer] = None
        self._arrivals.append(frame)
        return Up(peer)

    def _end(self, linger: float) -> None:
        if self.location.scheme == "zmq+inproc":
            inproc.unbind(self._socket, f"inproc://{self.location.host}{self.location.path}")
            super()._end(linger)
            return
        self._close_place(linger)
        if self._claim is not None:
            remove_socket(self.location.path)
            self._claim.release()
        context.release(linger)

    def _close_place(self, linger: float) -> None:
        """Close the socket and wait until its port is free, which ZeroMQ's thread sees to when it likes.

        Not by an unbind before the close, with which the connections end at once and lose what has not left yet.
        """
        reports = None
        # With no descriptor left to be told by, the place is free a moment after this link has ended.
        with contextlib.suppress(zmq.ZMQError):
            reports = watch(self._socket, zmq.EVENT_CLOSED)
        self._socket.close(linger=int(linger * 1000))
        if reports is not None:
            reports.poll(CLOSED)
            reports.close(linger=0)
