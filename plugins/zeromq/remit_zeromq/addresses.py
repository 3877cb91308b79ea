"""Inproc: who is bound under which name in this process; ZeroMQ itself would connect to nobody and never say so."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from typing import Final

import zmq

from remit.errors import BadLocation, TransportError
from remit.location import Location, read_count, read_size
from remit.transport import register_after_fork

__all__ = [
    "bind",
    "bound",
    "endpoint_of",
    "join",
    "leave",
    "read_frames",
    "read_limit",
    "refuse_file",
    "remove_socket",
    "unbind",
]


LONGEST_PATH: Final = 107
"""Bytes that the kernel allows in a socket's path."""
LONGEST_NAME: Final = 240
"""Bytes that ZeroMQ allows in a name within the process, less those that it needs itself."""
MOST: Final = 2**30
"""The most frames, and the most bytes of one, that an option may ask for."""


def endpoint_of(location: Location, *, binding: bool) -> str:
    """Return ZeroMQ's own name of the place. Raises BadLocation."""
    if location.username or location.password:
        raise BadLocation(f"{location} names a user, and ZeroMQ knows none: leave out what is before the @")
    if location.scheme == "zmq+tcp":
        return _tcp(location, binding=binding)
    return _ipc(location) if location.scheme == "zmq+ipc" else _inproc(location)


def refuse_file(path: str) -> None:
    """Raise TransportError where a path is that of a file but not of a socket: ZeroMQ would delete it."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise TransportError(f"cannot open {path}: a file which is not a socket is in the way; choose another path")


def remove_socket(path: str) -> None:
    """Remove a closed server's socket: ZeroMQ leaves it behind."""
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)  # noqa: PTH108


def read_frames(text: str) -> int:
    """Read a number of frames. Raises ValueError."""
    return _bounded(read_count(text))


def read_limit(text: str) -> int:
    """Read a number of bytes. Raises ValueError."""
    return _bounded(read_size(text))


def _bounded(value: int) -> int:
    if value > MOST:
        raise ValueError(f"over {MOST}, the most that is allowed")
    return value


def _tcp(location: Location, *, binding: bool) -> str:
    if not location.host or location.port is None or location.path.strip("/"):
        raise BadLocation(f"{location} needs a host and a port and no more, as in zmq+tcp://127.0.0.1:5555")
    if not binding and (location.port == 0 or location.host == "*"):
        raise BadLocation(f"{location} is no place to connect to: write the server's host and its own `location.port`")
    host = f"[{location.host}]" if ":" in location.host else location.host
    return f"tcp://{host}:{location.port}"


def _ipc(location: Location) -> str:
    if location.host or location.port is not None or not location.path.strip("/"):
        raise BadLocation(f"{location} names no file: write three slashes, as in zmq+ipc:///tmp/events.sock")
    if len(os.fsencode(location.path)) > LONGEST_PATH:
        raise BadLocation(f"the path of {location} is over {LONGEST_PATH} bytes; choose a shorter one")
    return f"ipc://{location.path}"


def _inproc(location: Location) -> str:
    name = location.host + location.path
    if not name or location.port is not None:
        raise BadLocation(f"{location} needs a name and no more, as in zmq+inproc://events")
    if len(os.fsencode(name)) > LONGEST_NAME:
        raise BadLocation(f"the name of {location} is over {LONGEST_NAME} bytes; choose a shorter one")
    return f"inproc://{name}"


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


register_after_fork(_after_fork_in_child)
