"""Link: what both ends share: one socket, read until it is empty and waited for by descriptor."""

from __future__ import annotations

import select
from collections import deque
from typing import Final, cast

import zmq

from remit.location import Location
from remit.transport import Arrival, Capabilities, OwnedLink, Wakeable
from remit_zeromq import context

__all__ = ["POLLIN", "POLLOUT", "ZeroMQLink"]

POLLIN: Final = int(zmq.POLLIN)
"""As a plain number, as the next: to combine those of an enum takes longer than to ask the socket."""
POLLOUT: Final = int(zmq.POLLOUT)

FULL_WAIT: Final = 0.01
"""Seconds between two tries to send to a peer that was full: a send may itself have taken the sign that it is not."""


class ZeroMQLink(OwnedLink):
    """Base of both ends.

    ZeroMQ's descriptor is edge-triggered: it tells of news since the socket was last asked, and any call may take the
    news. So `receive` asks the socket itself unless nothing was called since it was last found empty, and `wait`
    asks for its events before it blocks, on descriptors only.
    """

    def __init__(self, location: Location, capabilities: Capabilities, socket: zmq.Socket[bytes]) -> None:
        super().__init__(location, capabilities)
        self.dropped = 0
        """Messages that came and were no frame of any peer of ours."""
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
        if self._empty:
            if not self._poll.poll(0):
                return None
        elif not self._pending():  # Far cheaper than an attempt to read, which would fail with an exception.
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
        readable = cast(int, self._socket.getsockopt(zmq.EVENTS)) & POLLIN
        self._empty = not readable
        return bool(readable)

    def _look(self) -> Arrival | None:
        """Read one message; what is no frame is dropped and counted."""
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
            self.dropped += 1

    def _arrival(self, parts: list[bytes]) -> Arrival | None:
        raise NotImplementedError

    def _end(self, linger: float) -> None:
        self._socket.close(linger=int(linger * 1000))
        context.release(linger)
