"""Credentials: what the kernel itself attests of the process at the other end of a connection."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Credentials"]


class Credentials(NamedTuple):
    """What the kernel itself attests of a peer on this host."""

    pid: int
    uid: int
    gid: int
    inode: int | None = None
    """Inode of the peer's pidfd, unique for the whole boot; None where the kernel cannot say it."""
