"""Transport: opens ROUTER sockets for servers and DEALER sockets for clients."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import zmq

from remit.errors import LocationInUse, TransportError
from remit.location import Location
from remit.transport import Capabilities, FileLock, Link
from remit_zeromq import addresses as inproc
from remit_zeromq import link as context
from remit_zeromq.addresses import endpoint_of, read_frames, read_limit, refuse_file
from remit_zeromq.client import ClientLink, NeighbourLink
from remit_zeromq.server import ServerLink

__all__ = ["ZeroMQTransport"]

MAX_FRAME: Final = 16 * 1024 * 1024
"""Bytes of the largest frame, unless the location's ``max_frame`` says otherwise."""
HWM: Final = 1000
"""Frames that may wait in one direction of a connection, unless the location's ``hwm`` says otherwise."""
ENVELOPE: Final = 1024
"""Bytes by which the wire's own limit is above ours: ZeroMQ drops the connection over it, we raise before."""
HEARTBEAT: Final = 2_000
"""Milliseconds between two heartbeats of a connection."""
DEAD: Final = 8_000
"""Milliseconds without an answer after which a connection is dead."""
RECONNECT: Final = (10, 250)
"""Milliseconds before a client connects again, at first and at the most."""
DEFAULT_LINGER: Final = 1_000
"""Milliseconds for which frames may outlive a socket that nobody closed in so many words."""


class ZeroMQTransport:
    """Remit over ``zmq+tcp:``, ``zmq+ipc:`` or ``zmq+inproc:``."""

    options: Mapping[str, Callable[[str], Any]] = {"max_frame": read_limit, "hwm": read_frames}

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
        endpoint = endpoint_of(location, binding=True)
        # libzmq lets a second server take a socket file from the first, which then hears nothing any more.
        claim = FileLock(location.path) if location.scheme == "zmq+ipc" else None
        try:
            with _opened(zmq.ROUTER, location, capabilities, options) as socket:
                socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
                return ServerLink(_bound(socket, endpoint, location), capabilities, socket, claim)
        except BaseException:
            if claim is not None:
                claim.release()
            raise

    def connect(self, location: Location) -> Link:
        """Open a client, which comes up when a server is there. Raises BadLocation, TransportError."""
        capabilities, options = self._read(location)
        endpoint = endpoint_of(location, binding=False)
        with _opened(zmq.DEALER, location, capabilities, options) as socket:
            # Without it, frames would be queued for a server that is not there, and lost when it comes.
            socket.setsockopt(zmq.IMMEDIATE, 1)
            socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT[0])
            socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT[1])
            kind = NeighbourLink if location.scheme == "zmq+inproc" else ClientLink
            return kind(location, capabilities, socket, endpoint)

    def _read(self, location: Location) -> tuple[Capabilities, dict[str, Any]]:
        options = location.read(self.options)
        return replace(self.capabilities, max_frame=options.get("max_frame", MAX_FRAME)), options


def _bound(socket: zmq.Socket[bytes], endpoint: str, location: Location) -> Location:
    """Bind a server's socket; return where that is. Raises ZMQError, TransportError."""
    if location.scheme == "zmq+inproc":
        inproc.bind(socket, endpoint)
        return location
    if location.scheme == "zmq+ipc":
        refuse_file(location.path)
        socket.bind(endpoint)
        os.chmod(location.path, 0o600)  # noqa: PTH101
        return location
    socket.bind(endpoint)
    return location.replace(port=int(socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2]))


@contextlib.contextmanager
def _opened(
    kind: int, location: Location, capabilities: Capabilities, options: Mapping[str, Any]
) -> Iterator[zmq.Socket[bytes]]:
    """Make a socket; if the block fails, close it again and translate what ZeroMQ says."""
    try:
        held = context.acquire()
    except OSError as error:
        raise _translated(error, location) from error
    socket = None
    try:
        socket = held.socket(kind)
        socket.setsockopt(zmq.LINGER, DEFAULT_LINGER)
        socket.setsockopt(zmq.MAXMSGSIZE, capabilities.max_frame + ENVELOPE)
        socket.setsockopt(zmq.SNDHWM, options.get("hwm", HWM))
        socket.setsockopt(zmq.RCVHWM, options.get("hwm", HWM))
        socket.setsockopt(zmq.IPV6, ":" in location.host)
        if location.scheme == "zmq+tcp":
            socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT)
            socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, DEAD)
            socket.setsockopt(zmq.HEARTBEAT_TTL, DEAD)
        yield socket
    except BaseException as error:
        if socket is not None:
            socket.close(linger=0)
        context.release(0.0)
        if isinstance(error, zmq.ZMQError | OSError):
            raise _translated(error, location) from error
        raise


def _translated(error: zmq.ZMQError | OSError, location: Location) -> TransportError:
    if error.errno == errno.EADDRINUSE:
        return LocationInUse(f"{location} has a server already; end that one or choose another place")
    if error.errno == errno.EMFILE:
        return TransportError(f"cannot open {location}: out of sockets or descriptors; raise `ulimit -n`")
    advice = (
        "is its folder there, and may you write to it?" if location.path else "a server's address is its host's own"
    )
    return TransportError(f"cannot open {location}: {error}; {advice}")
