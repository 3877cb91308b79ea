"""Attest: what the kernel says of the process at the other end of a Unix socket."""

from __future__ import annotations

import functools
import os
import select
import socket
import struct
import sys
from typing import Final

from remit.transport import Credentials

__all__ = ["ATTESTS", "attest"]

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
