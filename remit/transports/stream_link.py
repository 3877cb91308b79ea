"""StreamLink: a link made of stream sockets: what the server's and the client's end of `unix:` share."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import select
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

from remit.location import Location
from remit.transport import Arrival, Capabilities, Credentials, Down, Frame, OwnedLink, Peer, Sent, Up, Wakeable

__all__ = ["ATTESTS", "Poller", "Stream", "StreamLink", "Unframer", "attest"]


ATTESTS: Final = hasattr(socket, "SO_PEERCRED")
"""Whether this system's kernel says anything."""

_SO_PEERPIDFD: Final = 77
"""Linux >= 6.5; the socket module has no name for it."""
_CREDENTIALS: Final = struct.Struct("3i")


def attest(connection: socket.socket) -> Credentials | None:
    """Return who connected, or who listens: process, user and group as they were at that moment.

    The inode is None before Linux 6.9, where a pidfd has none of its own, and when the process has ended already.
    """
    if not ATTESTS:
        return None
    pid, uid, gid = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return Credentials(pid, uid, gid, _inode(connection))


def _inode(connection: socket.socket) -> int | None:
    try:
        pidfd = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        return None
    try:
        found = os.fstat(pidfd)
    finally:
        os.close(pidfd)
    return None if found.st_dev == _anonymous_device() or sys.maxsize < 1 << 32 else found.st_ino


@functools.cache
def _anonymous_device() -> int:
    """Return the device of all anonymous inodes: a pidfd on it shares its inode with every other one."""
    anonymous = select.epoll()
    try:
        return os.fstat(anonymous.fileno()).st_dev
    finally:
        anonymous.close()


EVENTS: Final = 64
"""Descriptors told at a time, so that what is read from them at once has a bound; the others are told next."""


class _Watched(Protocol):
    def fileno(self) -> int: ...


class Poller:
    """Level-triggered, by epoll where there is one, so that an idle look costs the same for 1 and 1000 descriptors.

    Events are those of `select.poll`; timeouts are seconds.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        self._poll = self._epoll or select.poll()
        self._waker: Wakeable | None = None

    def register(self, watched: _Watched, events: int) -> None:
        """Begin to watch."""
        self._poll.register(watched.fileno(), events)

    def modify(self, watched: _Watched, events: int) -> None:
        """Watch for other events from now on."""
        self._poll.modify(watched.fileno(), events)

    def unregister(self, watched: _Watched) -> None:
        """Watch no more. Before the descriptor is closed."""
        self._poll.unregister(watched.fileno())

    def watch(self, waker: Wakeable | None) -> None:
        """Watch a waker as well, if there is one, and no other, until `unwatch`."""
        if waker is self._waker:
            return
        self._release()
        if waker is not None:
            with contextlib.suppress(FileExistsError):  # Ctrl-C may have come between this and the next line.
                self._poll.register(waker.fileno(), select.POLLIN)
            self._waker = waker

    def unwatch(self) -> None:
        """The wait is over. An epoll keeps the waker for the next: to ask the kernel twice for each wait is dear."""
        if self._epoll is None:
            self._release()

    def _release(self) -> None:
        waker, self._waker = self._waker, None
        if waker is not None and waker.fileno() >= 0:  # A closed one is forgotten by the kernel.
            with contextlib.suppress(FileNotFoundError, KeyError):
                self._poll.unregister(waker.fileno())

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        """Return the descriptors for which something can be done, and what, waiting up to ``timeout`` seconds."""
        if self._epoll is not None:
            return self._epoll.poll(timeout, EVENTS)
        return self._poll.poll(timeout * 1000)

    def close(self) -> None:
        """Give the epoll's descriptor back. May be called twice."""
        if self._epoll is not None:
            self._epoll.close()


BACKLOG: Final = 1 << 20
"""Bytes that may wait for a peer that does not read before `Stream.send` says FULL."""
PIECES: Final = 64
"""Buffers given to the kernel in one go."""
SMALL: Final = 4096
"""Bytes up to which it is cheaper to copy a frame behind its length than to name both to the kernel."""

_LENGTH: Final = struct.Struct(">I")
_BUSY: Final = (errno.EAGAIN, errno.EINTR, errno.ENOBUFS, errno.ENOMEM)
"""Errors that say "not now"."""


class Unframer:
    """Bytes in, whole frames out."""

    def __init__(self, max_frame: int) -> None:
        self._max_frame = max_frame
        self._rest = bytearray()
        self._needed = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Return the frames that ``data`` completes. Raises ValueError when it is no frame."""
        if self._rest:
            # Gathered, and looked at only when the frame is whole: a large one must not be copied at each read.
            self._rest += data
            if len(self._rest) < self._needed:
                return []
            data = bytes(self._rest)
            self._rest.clear()
        frames = []
        at, end = 0, len(data)
        self._needed = _LENGTH.size
        while end - at >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(data, at)
            if size > self._max_frame:
                raise ValueError(f"it announced a frame of {size} bytes, over the limit of {self._max_frame}")
            start = at + _LENGTH.size
            if start + size > end:
                self._needed = _LENGTH.size + size
                break
            at = start + size
            frames.append(data[start:at])
        self._rest += data[at:]
        return frames


class Stream:
    """A connected, non-blocking socket and what still waits to leave through it."""

    def __init__(self, connection: socket.socket, peer: Peer, *, max_frame: int) -> None:
        self.socket = connection
        self.peer = peer
        self.ended = ""
        """Why nothing can be sent any more; empty while something can."""
        self.over = False
        """Whether nothing more can arrive either."""
        self.backlog = 0
        """Bytes accepted that the kernel has not taken yet."""
        self.watched = False
        """Whether the owner asks the kernel for the moment when more can leave."""
        self.taken = 0
        """Bytes that the last read took."""
        self._unframer = Unframer(max_frame)
        self._waiting: deque[memoryview] = deque()

    def send(self, frame: bytes) -> Sent:
        """Offer one frame."""
        if self.backlog >= BACKLOG:
            self.flush()
        if self.ended:
            return Sent.GONE
        if self.backlog >= BACKLOG:
            return Sent.FULL
        length = _LENGTH.pack(len(frame))
        pieces = [length + frame] if len(frame) <= SMALL else [length, frame]
        sent = self._offer(pieces) if not self._waiting else 0
        if self.ended:
            return Sent.GONE
        total = _LENGTH.size + len(frame)
        if sent < total:
            self._waiting.extend(map(memoryview, pieces))
            self.backlog += total
            self._took(sent)
        return Sent.ACCEPTED

    def flush(self) -> None:
        """Hand the kernel as much as it takes now."""
        while self._waiting:
            count = self._offer(list(itertools.islice(self._waiting, PIECES)))
            if not count:
                return
            self._took(count)

    def read(self, buffer: memoryview) -> list[bytes]:
        """Return the frames that have arrived; sets `over` when no more will come."""
        try:
            count = self.taken = self.socket.recv_into(buffer)
            if count:
                return self._unframer.feed(bytes(buffer[:count]))
            self._break("the other end closed the connection")
        except ValueError as error:
            self._break(f"the other end does not speak this protocol: {error}")
        except OSError as error:
            if error.errno in _BUSY:
                return []
            self._break(f"the connection broke: {error.strerror}")
        self.over = True
        return []

    def close(self) -> None:
        """Give the socket back; what the kernel has taken still arrives."""
        self._break(self.ended or "closed")
        self.socket.close()

    def _offer(self, pieces: Sequence[bytes | memoryview]) -> int:
        """Return how many bytes the kernel took."""
        try:
            return self.socket.send(pieces[0]) if len(pieces) == 1 else self.socket.sendmsg(pieces)
        except (BrokenPipeError, ConnectionResetError):
            # What the other end sent before it left can still be read.
            self._break("the other end closed the connection")
        except OSError as error:
            if error.errno not in _BUSY:
                self._break(f"the connection broke: {error.strerror}")
                self.over = True
        return 0

    def _took(self, count: int) -> None:
        self.backlog -= count
        while count and count >= len(self._waiting[0]):
            count -= len(self._waiting.popleft())
        if count:
            self._waiting[0] = self._waiting[0][count:]

    def _break(self, why: str) -> None:
        self.ended = why
        self.backlog = 0
        self._waiting.clear()


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
