"""Claim: how a server makes a path of the file system its own, until it closes or dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from typing import Final

from remit.errors import LocationInUse, TransportError

__all__ = ["FileLock"]


ATTEMPTS: Final = 100
"""Lock files found and lost again before giving up: each time another server ended at that very moment."""


class FileLock:
    """The exclusive right to bind ``path``: a lock on ``<path>.lock``, which the kernel frees when its holder dies.

    Raises LocationInUse while another one, in any process, holds it, and TransportError where no file can be made.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock_path = path + ".lock"
        self._descriptor = self._take()

    def release(self) -> None:
        """Give the path free. May be called twice."""
        if self._descriptor >= 0:
            # Unlinked before it is unlocked; whoever opened the file meanwhile sees in `_take` that its name is lost.
            with contextlib.suppress(OSError):
                if _names(self._lock_path, self._descriptor):
                    os.unlink(self._lock_path)  # noqa: PTH108
            # Unlocked in so many words: a forked child may hold a copy of the descriptor.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            self.forget()

    def forget(self) -> None:
        """In a forked child: give back the descriptor, and leave the claim to the parent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _take(self) -> int:
        for _ in range(ATTEMPTS):
            descriptor = self._open()
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(descriptor)
                raise LocationInUse(f"{self.path} has a server already; end that one or choose another path") from error
            if _names(self._lock_path, descriptor):
                return descriptor
            os.close(descriptor)
        raise TransportError(f"cannot claim {self.path}: {self._lock_path} was replaced {ATTEMPTS} times; try again")

    def _open(self) -> int:
        try:
            return os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            full = error.errno in (errno.EMFILE, errno.ENFILE)
            advice = "raise ulimit -n" if full else "create its folder, or choose a path you may write to"
            raise TransportError(f"cannot make {self._lock_path}: {error.strerror}; {advice}") from error


def _names(path: str, descriptor: int) -> bool:
    """Tell whether ``path`` is still the name of the open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))  # noqa: PTH116
    except FileNotFoundError:
        return False
