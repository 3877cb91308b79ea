"""Forks: nng aborts a process that was forked after nng had been used, so such a process must never touch it."""

from __future__ import annotations

import atexit
import os
from typing import Any

import pynng.nng

from remit.errors import TransportError

__all__ = ["abandon", "used"]

_used = False
_inherited = False
_abandoned: list[Any] = []
"""What a forked child inherited. Kept for ever: collecting it would call into nng."""


def used() -> None:
    """Note that nng is about to be used here. Raises TransportError where it must not be."""
    global _used
    if _inherited:
        raise TransportError(
            "nng was used before this process was forked, and aborts in forked processes; start the process with "
            "multiprocessing's methods spawn or forkserver, or by exec"
        )
    _used = True


def abandon(inherited: object) -> None:
    """In a forked child: keep something of the parent's, and never touch it."""
    _abandoned.append(inherited)


def _after_fork_in_child() -> None:
    global _inherited
    if _used:
        _inherited = True
        atexit.unregister(pynng.nng._pynng_atexit)


os.register_at_fork(after_in_child=_after_fork_in_child)
