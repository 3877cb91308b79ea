"""Forks: nng aborts a process that was forked after nng had been used, so such a process must never touch it."""

from __future__ import annotations

import atexit
import os

import pynng.nng

from remit.errors import TransportError

__all__ = ["used"]

_used = False
_inherited = False


def used() -> None:
    """Note that nng is about to be used here. Raises TransportError where it must not be."""
    global _used
    if _inherited:
        raise TransportError(
            "nng was used before this process was forked, and aborts in forked processes; start the process with "
            "multiprocessing's methods spawn or forkserver, or by exec"
        )
    _used = True


def _after_fork_in_child() -> None:
    """Keep what was inherited from calling nng by itself: at exit, and whenever a socket is collected."""
    global _inherited
    if _used:
        _inherited = True
        atexit.unregister(pynng.nng._pynng_atexit)
        pynng.Socket.__del__ = _leave


def _leave(inherited: object) -> None:
    pass


os.register_at_fork(after_in_child=_after_fork_in_child)
