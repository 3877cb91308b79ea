"""Link: what both ends share: one socket, read until it is empty and waited for by descriptor."""

from __future__ import annotations

import itertools
import os
import select
import struct
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any, Final, cast

import zmq

from remit.location import Location
from remit.transport import Arrival, Capabilities, OwnedLink, Wakeable, register_after_fork

__all__ = ["abandon", "acquire", "release", "reported", "watch"]


TERM: Final = 0.1
"""Seconds beyond the linger that the context's own threads may take to end."""
SPARE: Final = 16
"""Descriptors that must be left when a link is opened."""

_lock = threading.Lock()
_context: zmq.Context[zmq.Socket[bytes]] | None = None
_users = 0
_abandoned: list[Any] = []
"""What a forked child inherited. Kept for ever: to collect it could touch what the parent still uses."""


def acquire() -> zmq.Context[zmq.Socket[bytes]]:
    """Return this process's context, making it for the first link. Raises OSError when descriptors run out."""
    global _context, _users
    _spare_descriptors()
    with _lock:
        if _context is None:
            _context = zmq.Context(io_threads=1)
            _context.setsockopt(zmq.MAX_SOCKETS, 65_535)
        _users += 1
        return _context


def _spare_descriptors() -> None:
    """Make sure of some before ZeroMQ asks for them: where it finds none, it may end the whole process."""
    spare: list[int] = []
    try:
        while len(spare) < SPARE:
            spare += os.pipe()
    finally:
        for descriptor in spare:
            os.close(descriptor)


def release(linger: float) -> None:
    """Give it back. The last link ends it, waiting up to ``linger`` seconds for frames that are still leaving.

    Without that a process that exits loses what its closed sockets have not yet written.
    """
    global _context, _users
    with _lock:
        _users -= 1
        if _users or _context is None:
            return
        context, _context = _context, None
    # In a thread, since term() has no time-out; what it still waits for has a finite linger of its own.
    ending = threading.Thread(target=context.term, name="zmq-term", daemon=True)
    try:
        ending.start()
    except RuntimeError:  # From 3.12 on a Python that is about to end starts no more threads.
        context.term()
    else:
        ending.join(linger + TERM)


def abandon(inherited: object) -> None:
    """In a forked child: keep something of the parent's, and never touch it."""
    _abandoned.append(inherited)


def _after_fork_in_child() -> None:
    global _context, _users, _lock
    _lock = threading.Lock()
    if _context is not None:
        abandon(_context)
    _context, _users = None, 0


register_after_fork(_after_fork_in_child)


_REPORT: Final = struct.Struct("=HI")
"""An event's number and value. Not by pyzmq's own reader, which imports asyncio: 20 ms."""

_numbers = itertools.count(1)


def watch(socket: zmq.Socket[bytes], events: int) -> zmq.Socket[bytes]:
    """Return a socket that receives a report of each event; ``socket.disable_monitor()`` ends it. Raises ZMQError."""
    reports: zmq.Socket[bytes] = socket.context.socket(zmq.PAIR)
    try:
        # No bound: with one, reports that nobody reads would in time stop ZeroMQ's thread, which all links share,
        # with a lock held that closing this one needs.
        reports.setsockopt(zmq.RCVHWM, 0)
        address = f"inproc://remit-monitor-{next(_numbers)}"
        socket.monitor(address, events)
        reports.connect(address)
    except zmq.ZMQError:
        reports.close(linger=0)
        raise
    return reports


def reported(reports: zmq.Socket[bytes]) -> Iterator[int]:
    """Yield the events that have been reported so far."""
    while True:
        try:
            parts = reports.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
        yield _REPORT.unpack(parts[0])[0]


POLLIN: Final = int(zmq.POLLIN)
"""As a plain number, as the next: to combine those of an enum takes longer than to ask the socket."""
POLLOUT: Final = int(zmq.POLLOUT)

FULL_WAIT: Final = 0.01
"""Seconds between two tries to send to a peer that was full: a send may itself have taken the sign that it is not."""


class ZeroMQLink(OwnedLink):
    """Base of both ends.

    ZeroMQ's descriptor is edge-triggered: it tells of news since the socket was last asked, and any call may take the
    news. So `receive` and `wait` ask the socket itself unless nothing was called since it was last found empty; then
    they believe the descriptor.
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
        if self._arrivals or ((self._full or not self._empty) and self._pending()):
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
        abandon(self)

    def _pending(self) -> bool:
        """Ask the socket itself; the answer may be the last sign of what has come."""
        readable = cast("int", self._socket.getsockopt(zmq.EVENTS)) & POLLIN
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
        release(linger)
