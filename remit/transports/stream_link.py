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

__all__ = ["HAS_PEER_CREDENTIALS", "FrameDecoder", "Poller", "Stream", "StreamLink", "peer_credentials"]


HAS_PEER_CREDENTIALS: Final = hasattr(socket, "SO_PEERCRED")
"""Whether this system's kernel says anything."""

_SO_PEERPIDFD: Final = 77
"""Linux >= 6.5; the socket module has no name for it."""
_CREDENTIALS: Final = struct.Struct("3i")


def peer_credentials(connection: socket.socket) -> Credentials | None:
    """Return who connected, or who listens: process, user and group as they were at that moment.

    The inode is None before Linux 6.9, where a pidfd has none of its own, and when the process has ended already.
    """
    if not HAS_PEER_CREDENTIALS:
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
    return None if found.st_dev == anonymous_device() or sys.maxsize < 1 << 32 else found.st_ino


@functools.cache
def anonymous_device() -> int:
    """Return the device of all anonymous inodes: a pidfd on it shares its inode with every other one."""
    anonymous = select.epoll()
    try:
        return os.fstat(anonymous.fileno()).st_dev
    finally:
        anonymous.close()


MAX_EVENTS: Final = 64
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

    def watch_waker(self, waker: Wakeable | None) -> None:
        """Watch a waker as well, if there is one, and no other, until `unwatch`."""
        if waker is self._waker:
            return
        self._remove_waker()
        if waker is not None:
            with contextlib.suppress(FileExistsError):  # Ctrl-C may have come between this and the next line.
                self._poll.register(waker.fileno(), select.POLLIN)
            self._waker = waker

    def unwatch_waker(self) -> None:
        """The wait is over. An epoll keeps the waker for the next: to ask the kernel twice for each wait is dear."""
        if self._epoll is None:
            self._remove_waker()

    def _remove_waker(self) -> None:
        waker, self._waker = self._waker, None
        if waker is not None and waker.fileno() >= 0:  # A closed one is forgotten by the kernel.
            with contextlib.suppress(FileNotFoundError, KeyError):
                self._poll.unregister(waker.fileno())

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        """Return the descriptors for which something can be done, and what, waiting up to ``timeout`` seconds."""
        if self._epoll is not None:
            return self._epoll.poll(timeout, MAX_EVENTS)
        return self._poll.poll(timeout * 1000)

    def close(self) -> None:
        """Give the epoll's descriptor back. May be called twice."""
        if self._epoll is not None:
            self._epoll.close()


MAX_UNSENT_BYTES: Final = 1 << 20
"""Bytes that may wait for a peer that does not read before `Stream.send` says FULL."""
MAX_BUFFERS: Final = 64
"""Buffers given to the kernel in one go."""
COPY_BELOW_BYTES: Final = 4096
"""Bytes up to which it is cheaper to copy a frame behind its length than to name both to the kernel."""

_LENGTH: Final = struct.Struct(">I")
_BUSY: Final = (errno.EAGAIN, errno.EINTR, errno.ENOBUFS, errno.ENOMEM)
"""Errors that say "not now"."""


class FrameDecoder:
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
        self.closed_reason = ""
        """Why nothing can be sent any more; empty while something can."""
        self.finished = False
        """Whether nothing more can arrive either."""
        self.unsent_bytes = 0
        """Bytes accepted that the kernel has not taken yet."""
        self.awaits_writable = False
        """Whether the owner asks the kernel for the moment when more can leave."""
        self.last_read_bytes = 0
        """Bytes that the last read took."""
        self._decoder = FrameDecoder(max_frame)
        self._unsent: deque[memoryview] = deque()

    def send(self, frame: bytes) -> Sent:
        """Offer one frame."""
        if self.unsent_bytes >= MAX_UNSENT_BYTES:
            self.flush()
        if self.closed_reason:
            return Sent.GONE
        if self.unsent_bytes >= MAX_UNSENT_BYTES:
            return Sent.FULL
        length = _LENGTH.pack(len(frame))
        pieces = [length + frame] if len(frame) <= COPY_BELOW_BYTES else [length, frame]
        sent = self._send_now(pieces) if not self._unsent else 0
        if self.closed_reason:
            return Sent.GONE
        total = _LENGTH.size + len(frame)
        if sent < total:
            self._unsent.extend(map(memoryview, pieces))
            self.unsent_bytes += total
            self._remove_sent(sent)
        return Sent.ACCEPTED

    def flush(self) -> None:
        """Hand the kernel as much as it takes now."""
        while self._unsent:
            count = self._send_now(list(itertools.islice(self._unsent, MAX_BUFFERS)))
            if not count:
                return
            self._remove_sent(count)

    def read(self, buffer: memoryview) -> list[bytes]:
        """Return the frames that have arrived; sets `over` when no more will come."""
        try:
            count = self.last_read_bytes = self.socket.recv_into(buffer)
            if count:
                return self._decoder.feed(bytes(buffer[:count]))
            self._mark_closed("the other end closed the connection")
        except ValueError as error:
            self._mark_closed(f"the other end does not speak this protocol: {error}")
        except OSError as error:
            if error.errno in _BUSY:
                return []
            self._mark_closed(f"the connection broke: {error.strerror}")
        self.finished = True
        return []

    def close(self) -> None:
        """Give the socket back; what the kernel has taken still arrives."""
        self._mark_closed(self.closed_reason or "closed")
        self.socket.close()

    def _send_now(self, pieces: Sequence[bytes | memoryview]) -> int:
        """Return how many bytes the kernel took."""
        try:
            return self.socket.send(pieces[0]) if len(pieces) == 1 else self.socket.sendmsg(pieces)
        except (BrokenPipeError, ConnectionResetError):
            # What the other end sent before it left can still be read.
            self._mark_closed("the other end closed the connection")
        except OSError as error:
            if error.errno not in _BUSY:
                self._mark_closed(f"the connection broke: {error.strerror}")
                self.finished = True
        return 0

    def _remove_sent(self, count: int) -> None:
        self.unsent_bytes -= count
        while count and count >= len(self._unsent[0]):
            count -= len(self._unsent.popleft())
        if count:
            self._unsent[0] = self._unsent[0][count:]

    def _mark_closed(self, why: str) -> None:
        self.closed_reason = why
        self.unsent_bytes = 0
        self._unsent.clear()


MAX_WAIT_S: Final = 24 * 3600.0
"""Seconds after which a wait returns in any case."""
FIRST_READ_BYTES: Final = 16 * 1024
"""Bytes read in one go, until one read takes as many: whoever hears little needs no more memory."""
READ_BYTES: Final = 256 * 1024
"""Bytes read in one go from then on."""


class StreamLink(OwnedLink):
    """What both ends have in common: streams, one poller for all, and what has arrived."""

    def __init__(self, location: Location, capabilities: Capabilities) -> None:
        self._arrivals: deque[Arrival] = deque()
        self.streams: dict[Peer, Stream] = {}
        self._watched: dict[int, Stream] = {}
        self._poller = Poller()
        self._buffer = memoryview(bytearray(FIRST_READ_BYTES))
        self._retry_at: float | None = None
        """When to try again what could not be done."""
        super().__init__(location, capabilities)  # Last: from here on a fork in another thread finds us whole.

    def send(self, peer: Peer, frame: bytes) -> Sent:
        """Offer one frame. Never blocks. Raises FrameTooLarge."""
        self._check(frame)
        stream = self.streams.get(peer)
        if stream is None:
            return Sent.GONE
        sent = stream.send(frame)
        self._update_stream(stream)
        return sent

    def receive(self) -> Arrival | None:
        """Return what arrived next, or None. Never blocks."""
        self._check()
        if not self._arrivals:
            self._poll_once(0.0)
        return self._arrivals.popleft() if self._arrivals else None

    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        """Return after ``timeout`` seconds, or when anything moves, or when ``waker`` is readable."""
        self._check()
        deadline = time.monotonic() + max(0.0, min(timeout, MAX_WAIT_S))
        try:
            self._poller.watch_waker(waker)
            while not self._arrivals:
                left = deadline - time.monotonic()
                if self._poll_once(max(0.0, left)) or left <= 0:
                    return
        finally:
            self._poller.unwatch_waker()

    def close(self, linger: float) -> None:
        """End the link; what was accepted may leave within ``linger`` seconds."""
        if self._ending():
            self._stop_listening()
            self._flush(linger)
            self._close_descriptors()

    def after_fork(self) -> None:
        """In a forked child: give back the copies, so that the parent's end is an end although the child lives."""
        super().after_fork()
        self._close_descriptors()

    # -- streams -----------------------------------------------------------------------------------------------

    def _poll_once(self, timeout: float) -> bool:
        """Handle what happens within ``timeout`` seconds; True if anything did."""
        if self._retry_at is not None:
            now = time.monotonic()
            if now >= self._retry_at:
                self._retry_at = None
                self._retry()
            if self._arrivals:
                return True
            if self._retry_at is not None:
                timeout = min(timeout, max(0.0, self._retry_at - now))
        events = self._poller.poll(timeout)
        for descriptor, event in events:
            stream = self._watched.get(descriptor)
            if stream is not None:
                self._handle_stream(stream, event)
            else:
                self._handle_listener(descriptor)
        return bool(events)

    def _handle_stream(self, stream: Stream, event: int) -> None:
        if event & select.POLLOUT:
            stream.flush()
        if event & ~select.POLLOUT:
            peer = stream.peer
            self._arrivals.extend([Frame(peer, data) for data in stream.read(self._buffer)])
            if stream.last_read_bytes == len(self._buffer) < READ_BYTES:
                self._buffer = memoryview(bytearray(READ_BYTES))
        self._update_stream(stream)

    def _update_stream(self, stream: Stream) -> None:
        """Draw the consequences of what a stream has just done."""
        if stream.finished:
            self._remove_stream(stream)
        elif stream.awaits_writable is not (stream.unsent_bytes > 0):
            stream.awaits_writable = not stream.awaits_writable
            self._poller.modify(stream.socket, select.POLLIN | (select.POLLOUT if stream.awaits_writable else 0))

    def _add_stream(self, connection: socket.socket, peer: Peer) -> None:
        connection.setblocking(False)
        stream = Stream(connection, peer, max_frame=self.capabilities.max_frame)
        self.streams[peer] = self._watched[connection.fileno()] = stream
        self._poller.register(connection, select.POLLIN)
        self._arrivals.append(Up(peer, peer_credentials(connection)))

    def _remove_stream(self, stream: Stream) -> None:
        del self.streams[stream.peer], self._watched[stream.socket.fileno()]
        self._poller.unregister(stream.socket)
        stream.close()
        self._arrivals.append(Down(stream.peer, stream.closed_reason))

    def _flush(self, linger: float) -> None:
        deadline = time.monotonic() + linger
        while waiting := [stream for stream in self.streams.values() if stream.unsent_bytes]:
            left = deadline - time.monotonic()
            if left <= 0:
                return
            poller = select.poll()
            for stream in waiting:
                poller.register(stream.socket, select.POLLOUT)
            poller.poll(left * 1000)
            for stream in waiting:
                stream.flush()

    def _close_descriptors(self) -> None:
        """Give back every descriptor, without a word to anybody."""
        for stream in self.streams.values():
            stream.socket.close()
        self._poller.close()

    # -- where the ends differ ---------------------------------------------------------------------------------

    def _retry(self) -> None:
        """Try again what could not be done."""

    def _handle_listener(self, descriptor: int) -> None:
        """Handle a descriptor that is no stream's."""

    def _stop_listening(self) -> None:
        """Begin to close: nobody may come any more."""
