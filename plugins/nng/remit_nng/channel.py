"""Channel: one Pair0 socket with one peer, and what its owner has to know of it."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import pynng

from remit.transport import Sent, Waker

__all__ = ["ENVELOPE", "Channel", "Notes", "received"]

ENVELOPE: Final = 1024
"""Bytes by which nng's own limit is above ours."""
BUFFER: Final = 64
"""Frames that nng holds in each direction of a channel."""
READ: Final = 32
"""Frames read from one channel before the others have their turn."""


class Notes:
    """What nng's own threads have to say: kept for the link's owner, who is woken."""

    def __init__(self) -> None:
        self.waker = Waker()
        self._notes: deque[tuple[Any, str]] = deque()

    def on(self, subject: Any, what: str) -> Callable[[Any], None]:
        """Return a callback that notes ``what`` about ``subject``. It does nothing else: nng holds a lock meanwhile."""

        def note(pipe: Any) -> None:
            self._notes.append((subject, what))
            self.waker.wake()

        return note

    def __bool__(self) -> bool:
        return bool(self._notes)

    def take(self) -> list[tuple[Any, str]]:
        """Return all notes so far, in order."""
        self.waker.clear()
        notes = []
        while self._notes:
            notes.append(self._notes.popleft())
        return notes


class Channel:
    """A Pair0 socket. Its ``token``, a random text, opens it as the first frame and closes it as the last one."""

    def __init__(self, notes: Notes, token: bytes, max_frame: int) -> None:
        self.token = token
        self.up = False
        self.deadline = 0.0
        """When to give it up if it is not up by then."""
        self._visited = False
        self.socket = pynng.Pair0(recv_max_size=max_frame + ENVELOPE, send_buffer_size=BUFFER, recv_buffer_size=BUFFER)
        try:
            self._descriptor: int = self.socket.recv_fd
        except pynng.NNGException:
            self.socket.close()
            raise
        self.socket.add_pre_pipe_connect_cb(self._visit)
        self.socket.add_post_pipe_connect_cb(notes.on(self, "connected"))
        self.socket.add_post_pipe_remove_cb(notes.on(self, "removed"))

    def _visit(self, pipe: Any) -> None:
        # nng would take another after the first has left, and tells that somebody left when it sends a second away.
        if self._visited:
            pipe.close()
        self._visited = True

    def fileno(self) -> int:
        """Return the descriptor that is readable while a frame waits."""
        return self._descriptor

    def room(self) -> int:
        """Return the descriptor that is readable while a frame can be sent; -1 if there is none left for it."""
        try:
            descriptor: int = self.socket.send_fd
        except pynng.NNGException:
            return -1
        return descriptor

    def send(self, frame: bytes) -> Sent:
        """Offer a frame."""
        try:
            self.socket.send(frame, block=False)
        except pynng.TryAgain:
            return Sent.FULL
        except pynng.NNGException:
            return Sent.GONE
        return Sent.ACCEPTED

    def read(self) -> list[bytes]:
        """Return some of the frames that wait."""
        frames: list[bytes] = []
        with contextlib.suppress(pynng.TryAgain, pynng.Closed):
            while len(frames) < READ:
                frames.append(received(self.socket))
        return frames

    def close(self) -> None:
        """Give the socket back."""
        self.socket.close()


def received(socket: Any) -> bytes:
    """Return the frame that waits. Raises TryAgain if there is none, and other NNGExceptions."""
    try:
        frame: bytes = socket.recv(block=False)
    except RuntimeError:
        return b""  # pynng takes a frame of no bytes from nng, but cannot unpack it
    return frame
