"""Opens ROUTER sockets for servers and DEALER sockets for clients, from the URLs and options of locations."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

import zmq

from remit.errors import BadLocation, LocationInUse, TransportError
from remit.location import Location, read_count, read_size
from remit.runtime_dirs import socket_path
from remit.transport import Capabilities, Link, SocketFile, tcp_address
from remit_zeromq.context import bind_inproc, close_socket, open_socket
from remit_zeromq.links import ClientLink, InprocClientLink, ServerLink

MAX_FRAME: Final = 16 * 1024 * 1024
"""Default of the option ``max_frame``, in bytes."""
HIGH_WATER_MARK: Final = 1000
"""Default of the option ``hwm``: frames queued in one direction of a connection."""
MAX_OPTION: Final = 2**30
"""Largest value of either option. libzmq reads them as 32-bit integers."""
ENVELOPE_BYTES: Final = 1024
"""Margin of ZMQ_MAXMSGSIZE over ``max_frame``: libzmq drops a connection over the limit, so `send` must raise first."""
HEARTBEAT_MS: Final = 2_000
HEARTBEAT_TIMEOUT_MS: Final = 8_000
RECONNECT_MS: Final = (10, 250)
"""Delay of the first attempt to reconnect, and the longest delay."""
DEFAULT_LINGER_MS: Final = 1_000
"""Linger of a socket that is not closed explicitly. libzmq's default is infinite and can block the process's exit."""
MAX_INPROC_NAME_BYTES: Final = 240
"""Bytes that libzmq allows in an inproc name, less a margin."""


def _read_bounded(read: Callable[[str], int], text: str) -> int:
    value = read(text)
    if value > MAX_OPTION:
        raise ValueError(f"over {MAX_OPTION}, the most that is allowed")
    return value


class ZeroMQTransport:
    """Remit over ``zmq+tcp:``, ``zmq+ipc:`` or ``zmq+inproc:``."""

    options: Mapping[str, Callable[[str], Any]] = {
        "max_frame": partial(_read_bounded, read_size),
        "hwm": partial(_read_bounded, read_count),
    }

    def __init__(self, scheme: str) -> None:
        self.capabilities = Capabilities(
            max_frame=MAX_FRAME,
            crosses_processes=scheme != "zmq+inproc",
            crosses_hosts=scheme == "zmq+tcp",
            sees_peers=False,
        )

    def bind(self, location: Location) -> Link:
        """Open a server. Raises LocationInUse, BadLocation, TransportError."""
        capabilities, options = self._read(location)
        endpoint = _endpoint(location, binding=True)
        # libzmq lets a second bind replace the socket file of the first server, which then receives nothing any more.
        file = SocketFile(location.path) if location.scheme == "zmq+ipc" else None
        try:
            with _open_socket(zmq.ROUTER, location, capabilities, options) as socket:
                # By default a ROUTER drops frames for unknown peers and at the high-water mark without an error.
                socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
                actual = _bind_socket(socket, endpoint, location)
                if file is not None:
                    file.mark_bound()
                return ServerLink(actual, capabilities, socket, file)
        except BaseException:
            if file is not None:
                file.release()
            raise

    def connect(self, location: Location) -> Link:
        """Open a client, which reports `Up` once a server is bound. Raises BadLocation, TransportError."""
        capabilities, options = self._read(location)
        endpoint = _endpoint(location, binding=False)
        with _open_socket(zmq.DEALER, location, capabilities, options) as socket:
            # By default ZeroMQ accepts frames while no server is connected, and loses them later.
            socket.setsockopt(zmq.IMMEDIATE, 1)
            socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS[0])
            socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MS[1])
            kind = InprocClientLink if location.scheme == "zmq+inproc" else ClientLink
            return kind(location, capabilities, socket, endpoint)

    def _read(self, location: Location) -> tuple[Capabilities, dict[str, Any]]:
        options = location.read(self.options)
        return replace(self.capabilities, max_frame=options.get("max_frame", MAX_FRAME)), options


def _endpoint(location: Location, *, binding: bool) -> str:
    """Return ZeroMQ's form of a location. Raises BadLocation."""
    if location.scheme == "zmq+tcp":
        return tcp_address(location, binding=binding)
    if location.scheme == "zmq+ipc":
        return f"ipc://{socket_path(location)}"
    name = location.host + location.path
    if not name or location.username or location.port is not None:
        raise BadLocation(f"{location} needs a name and no more, as in zmq+inproc://events")
    if len(os.fsencode(name)) > MAX_INPROC_NAME_BYTES:
        raise BadLocation(f"the name of {location} is over {MAX_INPROC_NAME_BYTES} bytes; choose a shorter one")
    return f"inproc://{name}"


def _bind_socket(socket: zmq.Socket[bytes], endpoint: str, location: Location) -> Location:
    """Bind a server's socket; return its location with the actual port. Raises ZMQError, TransportError."""
    if location.scheme == "zmq+inproc":
        bind_inproc(socket, endpoint)
        return location
    socket.bind(endpoint)
    if location.scheme == "zmq+ipc":
        return location
    return location.replace(port=int(socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2]))


@contextlib.contextmanager
def _open_socket(
    kind: int, location: Location, capabilities: Capabilities, options: Mapping[str, Any]
) -> Iterator[zmq.Socket[bytes]]:
    """Create a socket. If the block fails, close it and translate the error."""
    try:
        with contextlib.ExitStack() as undo:
            socket = open_socket(kind)
            undo.callback(close_socket, socket, 0.0)
            socket.setsockopt(zmq.LINGER, DEFAULT_LINGER_MS)
            socket.setsockopt(zmq.MAXMSGSIZE, capabilities.max_frame + ENVELOPE_BYTES)
            socket.setsockopt(zmq.SNDHWM, options.get("hwm", HIGH_WATER_MARK))
            socket.setsockopt(zmq.RCVHWM, options.get("hwm", HIGH_WATER_MARK))
            socket.setsockopt(zmq.IPV6, ":" in location.host)
            if location.scheme == "zmq+tcp":
                # Answered by ZeroMQ's own thread: a slow server stays connected, only a stopped process is dropped.
                socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
                socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
                socket.setsockopt(zmq.HEARTBEAT_TTL, HEARTBEAT_TIMEOUT_MS)
            yield socket
            undo.pop_all()
    except (zmq.ZMQError, OSError) as error:
        if error.errno == errno.EADDRINUSE:
            raise LocationInUse(f"{location} has a server already; stop it or choose another place") from error
        if error.errno == errno.EMFILE:
            advice = "out of sockets or descriptors; raise `ulimit -n`"
        elif location.path:
            advice = f"{error}; does its folder exist, and may you write to it?"
        else:
            advice = f"{error}; check the host; a server can bind only to an address of its own host"
        raise TransportError(f"cannot open {location}: {advice}") from error
