"""ZeroMQ state of the process: the shared context, socket monitors, and the servers on inproc names."""

from __future__ import annotations

import contextlib
import itertools
import select
import struct
import threading
import weakref
from collections.abc import Iterator
from typing import Final

import zmq

from remit.transport import register_after_fork

TERM_WAIT_S: Final = 0.1
"""Time beyond the linger for the context's own threads to end."""
SPARE_DESCRIPTORS: Final = 16
"""Descriptors that must be free when a link is opened."""

# Objects whose descriptor is closed with them, also after an interrupt, which would leave those of os.pipe() open.
_OBJECT: Final = getattr(select, "epoll", None) or getattr(select, "kqueue", None)
_lock = threading.RLock()
"""Knows its owner: a finalizer may close a link within a call that holds it."""
_context: zmq.Context[zmq.Socket[bytes]] | None = None
_sockets: weakref.WeakSet[zmq.Socket[bytes]] = weakref.WeakSet()
"""The sockets of the links. While one of them is open, the context is in use."""
inherited: Final[list[object]] = []
"""In a forked child, the links and the context of the parent. Never removed: pyzmq's finalizers would act on them."""


def open_socket(kind: int) -> zmq.Socket[bytes]:
    """Return a socket of the process's context, created for the first one. Raises OSError if descriptors run out."""
    global _context
    # libzmq 4.3.5 may abort the process if it finds no descriptor for a socket or a thread.
    if _OBJECT is not None:
        [_OBJECT() for _ in range(SPARE_DESCRIPTORS)]
    with _lock:
        if _context is None:
            _context = zmq.Context(io_threads=1)
            _context.setsockopt(zmq.MAX_SOCKETS, 65_535)
        socket = _context.socket(kind)
        _sockets.add(socket)
        return socket


def close_socket(socket: zmq.Socket[bytes], linger: float) -> None:
    """Close a socket. After the last one, terminate the context: wait up to ``linger`` seconds for unsent frames.

    May be repeated after an interrupt. Without zmq_ctx_term() the process may exit before ZeroMQ's I/O thread has
    written the frames of closed sockets.
    """
    global _context
    if not socket.closed:
        socket.disable_monitor()
        socket.close(linger=int(linger * 1000))
    if _lock._is_owned():  # type: ignore[attr-defined]
        return  # A finalizer within `open_socket`, which needs the context.
    with _lock:
        _sockets.discard(socket)
        if _context is None or not all(each.closed for each in _sockets):
            return
        context, _context = _context, None
    # In a thread, since term() has no timeout. The thread ends by itself: each socket has a finite linger.
    ending = threading.Thread(target=context.term, name="zmq-term", daemon=True)
    try:
        ending.start()
    except RuntimeError:  # Python 3.12 and later start no threads at interpreter shutdown.
        context.term()
    else:
        ending.join(linger + TERM_WAIT_S)


def _after_fork_in_child() -> None:
    # libzmq's I/O thread exists only in the parent: in the child a send reports success and sends nothing.
    global _context, _sockets, _lock
    _lock = threading.RLock()  # another thread of the parent may have held it
    if _context is not None:
        inherited.append(_context)
    _context, _sockets = None, weakref.WeakSet()
    inproc_servers.clear()


register_after_fork(_after_fork_in_child)


_EVENT: Final = struct.Struct("=HI")
"""Number and value of an event. Parsed here, since zmq.utils.monitor imports asyncio, which takes 20 ms."""

_monitor_numbers = itertools.count(1)


def open_monitor(socket: zmq.Socket[bytes], events: int) -> zmq.Socket[bytes]:
    """Return a socket that receives the events of ``socket`` until `socket.disable_monitor()`. Raises ZMQError."""
    monitor: zmq.Socket[bytes] = socket.context.socket(zmq.PAIR)
    try:
        # No limit: a full monitor blocks libzmq's I/O thread, which all links share, while it holds the lock that
        # closing this socket needs.
        monitor.setsockopt(zmq.RCVHWM, 0)
        address = f"inproc://remit-monitor-{next(_monitor_numbers)}"
        socket.monitor(address, events)
        monitor.connect(address)
    except BaseException:
        socket.disable_monitor()
        monitor.close(linger=0)
        raise
    return monitor


def read_monitor(monitor: zmq.Socket[bytes]) -> Iterator[int]:
    """Yield the numbers of the events that have been reported."""
    while True:
        try:
            parts = monitor.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
        yield _EVENT.unpack(parts[0])[0]


# libzmq neither monitors nor reconnects inproc connections, and connects to a name that is not bound without an
# error. So each bind is registered here, and a client compares the bind that it is connected to with the current one.

inproc_servers: Final[dict[str, object]] = {}
"""A new object for each bind, by endpoint."""


def bind_inproc(socket: zmq.Socket[bytes], endpoint: str) -> None:
    """Bind a server's socket. Raises ZMQError."""
    with _lock:
        socket.bind(endpoint)
        inproc_servers[endpoint] = object()


def unbind_inproc(socket: zmq.Socket[bytes], endpoint: str) -> None:
    """Unbind a server's socket. Its clients notice at their next check."""
    with _lock, contextlib.suppress(KeyError, zmq.ZMQError):  # An interrupted call has unbound it.
        del inproc_servers[endpoint]
        socket.unbind(endpoint)


def connect_inproc(socket: zmq.Socket[bytes], endpoint: str) -> object:
    """Connect to the bound server, and return its object; return None if there is no server."""
    # Under the lock, so that the server cannot unbind between the check and the connect.
    with _lock:
        server = inproc_servers.get(endpoint)
        if server is not None:
            socket.connect(endpoint)
        return server
