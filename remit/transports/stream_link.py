"""Links over connected stream sockets: framing, buffering and polling for both ends of `unix:`."""

from __future__ import annotations

import errno
import functools
import io
import itertools
import os
import select
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

from remit.location import Location
from remit.transport import Arrival, Capabilities, Credentials, Down, Frame, OwnedLink, Peer, Poller, Sent, Up, Wakeable

HAS_PEER_CREDENTIALS: Final = hasattr(socket, "SO_PEERCRED")
_SO_PEERPIDFD: Final = 77
"""Linux 6.5 and later. The socket module has no name for it."""
_CREDENTIALS: Final = struct.Struct("3i")


def peer_credentials(connection: socket.socket) -> Credentials | None:
    """Return the process, user and group of the peer, as the kernel recorded them at connect() or listen().

    The inode is None before Linux 6.9, where a pidfd has no inode of its own, and if the process has ended already.
    """
    if not HAS_PEER_CREDENTIALS:
        return None
    pid, uid, gid = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return Credentials(pid, uid, gid, _pidfd_inode(connection))


def _pidfd_inode(connection: socket.socket) -> int | None:
    # One call of C opens the descriptor and stores an object that closes it: wherever a signal handler raises.
    pidfds: list[io.FileIO] = []
    try:
        pidfds.extend(map(io.FileIO, itertools.starmap(connection.getsockopt, ((socket.SOL_SOCKET, _SO_PEERPIDFD),))))
        found = os.fstat(pidfds[0].fileno())
        pidfds[0].close()
    except OSError:
        return None
    # 32-bit systems truncate the inode, so it is not unique there.
    return None if found.st_dev == anonymous_device() or sys.maxsize < 1 << 32 else found.st_ino


@functools.cache
def anonymous_device() -> int:
    """Return the device of anonymous inodes. All pidfds on it share one inode (Linux before 6.9)."""
    # Not an epoll, which has the same device: gevent removes it from `select`.
    anonymous = os.eventfd(0)
    try:
        return os.fstat(anonymous).st_dev
    finally:
        os.close(anonymous)


MAX_UNSENT_BYTES: Final = 1 << 20
"""Bytes queued for a peer that does not read, beyond which `Stream.send` returns FULL."""
MAX_BUFFERS: Final = 64
"""Buffers passed to one sendmsg()."""
COPY_BELOW_BYTES: Final = 4096
"""Up to this size, copying a frame behind its length is cheaper than passing two buffers to the kernel."""

_ACCEPTED: Final = Sent.ACCEPTED  # Each access through the class costs 70 ns on CPython 3.11.
_LENGTH: Final = struct.Struct(">I")
_LENGTH_BYTES: Final = _LENGTH.size
_RETRY_LATER: Final = (errno.EAGAIN, errno.EINTR, errno.ENOBUFS, errno.ENOMEM)


class FrameDecoder:
    """Splits a stream of bytes into frames, each preceded by its length in four bytes."""

    def __init__(self, max_frame: int) -> None:
        self._max_frame = max_frame
        self._rest = bytearray()
        self._needed = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Return the frames that ``data`` completes. Raises ValueError if a frame is over the limit."""
        if self._rest:
            # Append only, until the frame is whole: parsing at each read would copy a large frame many times.
            self._rest += data
            if len(self._rest) < self._needed:
                return []
            data = bytes(self._rest)
            self._rest.clear()
        frames = []
        at, end = 0, len(data)
        while end - at >= _LENGTH_BYTES:
            (size,) = _LENGTH.unpack_from(data, at)
            if size > self._max_frame:
                raise ValueError(f"it announced a frame of {size} bytes, over the limit of {self._max_frame}")
            start = at + _LENGTH_BYTES
            if start + size > end:
                self._needed = _LENGTH_BYTES + size
                break
            at = start + size
            frames.append(data[start:at])
        else:
            self._needed = _LENGTH_BYTES
        if at < end:
            self._rest += data[at:]
        return frames


class Stream:
    """A connected, non-blocking socket with its send buffer and frame decoder."""

    def __init__(self, connection: socket.socket, peer: Peer, *, max_frame: int) -> None:
        self.socket = connection
        self.peer = peer
        self.closed_reason = ""
        """Why nothing can be sent any more; empty while the stream is open."""
        self.finished = False
        """True if nothing more can arrive either."""
        self.unsent_bytes = 0
        """Bytes accepted but not yet taken by the kernel."""
        self.awaits_writable = False
        """True while the link polls the socket for writability."""
        self.has_received = False
        """True once a whole frame has arrived."""
        self.last_read_bytes = 0
        """Bytes that the last `read` took."""
        self._decoder = FrameDecoder(max_frame)
        self._unsent: deque[memoryview] = deque()

    def send(self, frame: bytes) -> Sent:
        """Send or queue one frame; FULL or GONE if it was not taken."""
        if self.unsent_bytes >= MAX_UNSENT_BYTES:
            self.flush()
            if self.unsent_bytes >= MAX_UNSENT_BYTES:
                return Sent.FULL
        if self.closed_reason:
            return Sent.GONE
        length = _LENGTH.pack(len(frame))
        pieces = [length + frame] if len(frame) <= COPY_BELOW_BYTES else [length, frame]
        sent = self._send_now(pieces) if not self._unsent else 0
        if self.closed_reason:
            return Sent.GONE
        total = _LENGTH_BYTES + len(frame)
        if sent < total:
            self._unsent.extend(map(memoryview, pieces))
            self.unsent_bytes += total
            self._remove_sent(sent)
        return _ACCEPTED

    def flush(self) -> None:
        """Pass queued bytes to the kernel until it takes no more."""
        while self._unsent:
            count = self._send_now(list(itertools.islice(self._unsent, MAX_BUFFERS)))
            if not count:
                return
            self._remove_sent(count)

    def read(self, buffer: memoryview) -> list[bytes]:
        """Return the frames that have arrived; set `finished` when no more can arrive."""
        try:
            count = self.last_read_bytes = self.socket.recv_into(buffer)
            if count:
                # Copied once: the frames are slices of these bytes, and the buffer serves all streams of the link.
                frames = self._decoder.feed(bytes(buffer[:count]))
                if frames:
                    self.has_received = True
                return frames
            self._mark_closed("the other end closed the connection")
        except ValueError as error:
            self._mark_closed(f"the other end does not speak this protocol: {error}")
        except OSError as error:
            if error.errno in _RETRY_LATER:
                return []
            self._mark_closed(f"the connection broke: {error.strerror}")
        self.finished = True
        return []

    def close(self) -> None:
        """Close the socket. Bytes that the kernel has taken still arrive."""
        self._mark_closed(self.closed_reason or "closed")
        self.socket.close()

    def _send_now(self, pieces: Sequence[bytes | memoryview]) -> int:
        """Pass bytes to the kernel without queueing any; return the number that it took."""
        try:
            return self.socket.send(pieces[0]) if len(pieces) == 1 else self.socket.sendmsg(pieces)
        except (BrokenPipeError, ConnectionResetError):
            # Only sending is over: bytes that the peer sent before it closed can still be read.
            self._mark_closed("the other end closed the connection")
        except OSError as error:
            if error.errno not in _RETRY_LATER:
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


FIRST_READ_BYTES: Final = 16 * 1024
"""Size of the read buffer until one read fills it. Most links receive little and need no more memory."""
READ_BYTES: Final = 256 * 1024
"""Size of the read buffer after that."""
EMPTIED_S: Final = 0.001
"""Seconds for which a link counts as emptied. After a pause of its owner, peers that have sent are not silent."""


class StreamLink(OwnedLink):
    """Base of both ends: streams by peer, one poller for all, and a queue of arrivals."""

    def __init__(self, location: Location, capabilities: Capabilities) -> None:
        self._arrivals: deque[Arrival] = deque()
        self.streams: dict[Peer, Stream] = {}
        self._watched: dict[int, Stream] = {}
        self._poller = Poller()
        self._buffer = memoryview(bytearray(FIRST_READ_BYTES))
        self._retry_at: float | None = None
        """Monotonic time of the next `_retry`."""
        self._emptied_until = 0.0
        """If the poll of `wait` has left nothing to read, `receive` polls no second time until this monotonic time."""
        self._active: Stream | None = None
        """The stream that a method is using."""
        # Last, since it registers `after_fork`: another thread may fork at any time, and needs a complete object then.
        super().__init__(location, capabilities)

    def send(self, peer: Peer, frame: bytes) -> Sent:
        """Send one frame. Never blocks. Raises FrameTooLarge."""
        self._check(frame)
        stream = self.streams.get(peer)
        if stream is None:
            return Sent.GONE
        self._active = stream
        sent = stream.send(frame)
        if sent is not _ACCEPTED or stream.unsent_bytes:
            self._update_stream(stream)
        self._active = None
        return sent

    def receive(self) -> Arrival | None:
        """Return the next arrival, or None. Never blocks."""
        self._check()
        if self._arrivals:
            return self._arrivals.popleft()
        if not self._emptied_until or time.monotonic() > self._emptied_until:
            self._poll_once(0.0)
        self._emptied_until = 0.0
        return self._arrivals.popleft() if self._arrivals else None

    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        """Wait up to ``timeout`` seconds for an arrival, room to send, or ``waker``."""
        self._check()
        deadline = time.monotonic() + timeout
        self._emptied_until = 0.0
        try:
            self._poller.watch_waker(waker)
            while not self._arrivals:
                left = deadline - time.monotonic()
                if self._poll_once(max(0.0, left)) or left <= 0:
                    break
        finally:
            self._poller.unwatch_waker()

    def recover(self) -> bool:
        """End the connection whose frames may have been cut: a part of one may be sent, or read."""
        stream, self._active = self._active, None
        if stream is not None and self.streams.get(stream.peer) is stream:
            stream.closed_reason = stream.closed_reason or "an exception interrupted its use"
            self._remove_stream(stream)
        return True

    def after_fork(self) -> None:
        """Close the copies in a forked child, so that a connection ends when the parent closes it."""
        super().after_fork()
        self._close_descriptors()

    # -- streams -------------------------------------------------------------------------------------------------

    def _poll_once(self, timeout: float) -> bool:
        """Poll for up to ``timeout`` seconds and handle the events; return whether there were any."""
        if self._retry_at is not None:
            now = time.monotonic()
            if now >= self._retry_at:
                self._retry()
            if self._arrivals:
                return True
            if self._retry_at is not None:
                timeout = min(timeout, max(0.0, self._retry_at - now))
        events = self._poller.poll(timeout)
        self._emptied_until = 0.0
        for descriptor, event in events:
            stream = self._watched.get(descriptor)
            if stream is not None:
                self._active = stream
                self._handle_stream(stream, event)
                self._active = None
                if len(events) == 1 and stream.last_read_bytes < len(self._buffer):
                    self._emptied_until = time.monotonic() + EMPTIED_S
            else:
                self._handle_listener(descriptor)
        return bool(events)

    def _handle_stream(self, stream: Stream, event: int) -> None:
        if event & select.POLLOUT:
            stream.flush()
        if event & ~select.POLLOUT:
            if stream.last_read_bytes == len(self._buffer) < READ_BYTES:
                self._buffer = memoryview(bytearray(READ_BYTES))
            peer = stream.peer
            self._arrivals.extend([Frame(peer, data) for data in stream.read(self._buffer)])
        self._update_stream(stream)

    def _update_stream(self, stream: Stream) -> None:
        """Remove a finished stream, or poll it for writability as long as it has unsent bytes."""
        if stream.finished:
            self._remove_stream(stream)
        # Only while there are unsent bytes: an idle socket is always writable, so each poll would return immediately.
        elif stream.awaits_writable is not (stream.unsent_bytes > 0):
            stream.awaits_writable = not stream.awaits_writable
            self._poller.modify(stream.socket, select.POLLIN | (select.POLLOUT if stream.awaits_writable else 0))

    def _add_stream(self, connection: socket.socket, peer: Peer) -> None:
        connection.setblocking(False)
        stream = Stream(connection, peer, max_frame=self.capabilities.max_frame)
        up = Up(peer, peer_credentials(connection))
        self._poller.register(connection, select.POLLIN)
        self.streams[peer] = self._watched[connection.fileno()] = stream
        self._arrivals.append(up)

    def _remove_stream(self, stream: Stream) -> None:
        # Each step may be repeated: an interrupt may leave this method, and then `recover` calls it again.
        if self._watched.pop(stream.socket.fileno(), None) is not None:
            self._poller.unregister(stream.socket)
        stream.close()
        self._arrivals.append(Down(stream.peer, stream.closed_reason))
        self.streams.pop(stream.peer, None)

    def _release(self, linger: float) -> None:
        self._flush(linger)
        self._close_descriptors()

    def _flush(self, linger: float) -> None:
        deadline = time.monotonic() + linger
        while waiting := [stream for stream in self.streams.values() if stream.unsent_bytes]:
            left = deadline - time.monotonic()
            if left <= 0:
                return
            # The link's own poller would also return for frames that arrive, which are not read any more.
            poller = select.poll()
            for stream in waiting:
                poller.register(stream.socket, select.POLLOUT)
            poller.poll(left * 1000)
            for stream in waiting:
                stream.flush()

    def _close_descriptors(self) -> None:
        """Close every descriptor without sending anything."""
        for stream in self.streams.values():
            stream.socket.close()
        self._poller.close()

    # -- hooks of the two ends -----------------------------------------------------------------------------------

    def _retry(self) -> None:
        """Repeat what failed, and change `_retry_at` last. Called once `_retry_at` has passed."""

    def _handle_listener(self, descriptor: int) -> None:
        """Handle an event of a descriptor that belongs to no stream."""
