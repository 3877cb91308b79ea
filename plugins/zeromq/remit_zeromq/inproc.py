"""Inproc: who is bound under which name in this process; ZeroMQ itself would connect to nobody and never say so."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Final

import zmq

__all__ = ["bind", "bound", "join", "leave", "unbind"]

_lock = threading.Lock()
_bound: Final[dict[str, object]] = {}
"""What stands for the server at each endpoint: another object for each that is bound there."""


def bind(socket: zmq.Socket[bytes], endpoint: str) -> None:
    """Bind a server's socket. Raises ZMQError."""
    with _lock:
        socket.bind(endpoint)
        _bound[endpoint] = object()


def unbind(socket: zmq.Socket[bytes], endpoint: str) -> None:
    """Give the name free; whoever was connected will find out."""
    with _lock:
        del _bound[endpoint]
        socket.unbind(endpoint)


def bound(endpoint: str) -> object:
    """Return what stands for the server that is there now, or None."""
    return _bound.get(endpoint)


def join(socket: zmq.Socket[bytes], endpoint: str) -> object:
    """Connect to the server that is there, if any, and return what stands for it."""
    with _lock:
        server = _bound.get(endpoint)
        if server is not None:
            socket.connect(endpoint)
        return server


def leave(socket: zmq.Socket[bytes], endpoint: str) -> None:
    """Forget a server that has gone."""
    with contextlib.suppress(zmq.ZMQError):  # ZeroMQ may have forgotten it already.
        socket.disconnect(endpoint)


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()
    _bound.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
