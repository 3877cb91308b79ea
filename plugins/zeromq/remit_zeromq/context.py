"""Context: the process's one ZeroMQ context, held while links are open and never taken over a fork."""

from __future__ import annotations

import os
import threading
from typing import Any, Final

import zmq

__all__ = ["abandon", "acquire", "release"]

TERM: Final = 0.1
"""Seconds beyond the linger that the context's own threads may take to end."""
SPARE: Final = 16
"""Descriptors that must be left when a link is opened."""

_lock = threading.Lock()
_context: zmq.Context[zmq.Socket[bytes]] | None = None
_users = 0
_abandoned: list[Any] = []
"""What a forked child inherited. Kept for ever: to collect it could touch what the parent still uses."""


def acquire() -> zmq.Context[zmq.Socket[bytes]]:
    """Return this process's context, making it for the first link. Raises OSError when descriptors run out."""
    global _context, _users
    _spare_descriptors()
    with _lock:
        if _context is None:
            _context = zmq.Context(io_threads=1)
            _context.setsockopt(zmq.MAX_SOCKETS, 65_535)
        _users += 1
        return _context


def _spare_descriptors() -> None:
    """Make sure of some before ZeroMQ asks for them: where it finds none, it may end the whole process."""
    spare: list[int] = []
    try:
        while len(spare) < SPARE:
            spare += os.pipe()
    finally:
        for descriptor in spare:
            os.close(descriptor)


def release(linger: float) -> None:
    """Give it back. The last link ends it, waiting up to ``linger`` seconds for frames that are still leaving.

    Without that a process that exits loses what its closed sockets have not yet written.
    """
    global _context, _users
    with _lock:
        _users -= 1
        if _users or _context is None:
            return
        context, _context = _context, None
    # In a thread, since term() has no time-out; what it still waits for has a finite linger of its own.
    ending = threading.Thread(target=context.term, name="zmq-term", daemon=True)
    try:
        ending.start()
    except RuntimeError:  # From 3.12 on a Python that is about to end starts no more threads.
        context.term()
    else:
        ending.join(linger + TERM)


def abandon(inherited: object) -> None:
    """In a forked child: keep something of the parent's, and never touch it."""
    _abandoned.append(inherited)


def _after_fork_in_child() -> None:
    global _context, _users, _lock
    _lock = threading.Lock()
    if _context is not None:
        abandon(_context)
    _context, _users = None, 0


os.register_at_fork(after_in_child=_after_fork_in_child)
