"""Stream: one connected stream socket that carries whole frames, each after its length in four bytes."""

from __future__ import annotations

import errno
import itertools
import socket
import struct
from collections import deque
from collections.abc import Sequence
from typing import Final

from remit.transport import Peer, Sent

__all__ = ["Stream", "Unframer"]

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
