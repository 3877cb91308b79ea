"""Unix: the transport between the processes of one host: no server, no package, and the kernel says who calls."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import select
import socket
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from remit.errors import BadLocation, TransportError
from remit.hookspecs import hookimpl
from remit.location import Location, read_size
from remit.transport import SERVER, Capabilities, Frame, Transport
from remit.transports.file_lock import FileLock
from remit.transports.stream_link import HAS_PEER_CREDENTIALS, Stream, StreamLink

__all__ = ["UnixTransport", "remit_transport"]

MAX_FRAME: Final = 16 * 1024 * 1024
"""Bytes of the largest frame, unless the location's ``max_frame`` says otherwise."""
LONGEST_PATH: Final = 107
"""Bytes that the kernel allows in a socket's path."""
LISTEN_BACKLOG: Final = 4096
"""Connections that may wait to be accepted."""
MAX_ACCEPTS_PER_TURN: Final = 64
"""Connections accepted in one go."""
ACCEPT_PAUSE_S: Final = 0.1
"""Seconds without accepting after the system had no descriptor left."""
FIRST_RETRY_S: Final = 0.01
"""Seconds between a lost connection and the first attempt to connect again; doubled by each that fails."""
MAX_RETRY_S: Final = 0.25
"""Seconds between two attempts at the most."""

_tokens = itertools.count(1)


class _ServerLink(StreamLink):
    """The server's end: a listening socket, and a stream per peer."""

    def __init__(self, location: Location, capabilities: Capabilities) -> None:
        self._path = location.path
        with contextlib.ExitStack() as undo:
            self._file_lock = FileLock(self._path)
            undo.callback(self._file_lock.release)
            self._listener, self._socket_status = _listen(self._path)
            undo.callback(self._listener.close)
            super().__init__(location, capabilities)
            undo.pop_all()
        self._poller.register(self._listener, select.POLLIN)

    def _handle_listener(self, descriptor: int) -> None:
        if descriptor == self._listener.fileno():
            self._accept()

    def _accept(self) -> None:
        for _ in range(MAX_ACCEPTS_PER_TURN):
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ECONNABORTED:
                    # Out of descriptors, most likely: to ask at once again would only burn the processor.
                    self._poller.unregister(self._listener)
                    self._retry_at = time.monotonic() + ACCEPT_PAUSE_S
                    return
            else:
                self._add_stream(connection, next(_tokens))

    def _retry(self) -> None:
        self._poller.register(self._listener, select.POLLIN)

    def _stop_listening(self) -> None:
        with contextlib.suppress(OSError):
            if os.path.samestat(self._socket_status, os.lstat(self._path)):
                os.unlink(self._path)  # noqa: PTH108
        self._listener.close()

    def _close_descriptors(self) -> None:
        super()._close_descriptors()
        self._listener.close()
        if self._forked:
            self._file_lock.forget()
        else:
            self._file_lock.release()


class _ClientLink(StreamLink):
    """The client's end: one stream, made anew whenever it is lost."""

    def __init__(self, location: Location, capabilities: Capabilities) -> None:
        self._retry_delay = FIRST_RETRY_S
        super().__init__(location, capabilities)
        try:
            self._add_stream(_connect(location.path), SERVER)
        except PermissionError as error:
            self._close_descriptors()
            raise TransportError(
                f"you may not connect to {location.path}: ask its owner, or run as its owner"
            ) from error
        except OSError:
            self._schedule_retry()

    def _handle_stream(self, stream: Stream, event: int) -> None:
        super()._handle_stream(stream, event)
        if self._arrivals and isinstance(self._arrivals[0], Frame):
            self._retry_delay = FIRST_RETRY_S

    def _remove_stream(self, stream: Stream) -> None:
        super()._remove_stream(stream)
        self._schedule_retry()

    def _retry(self) -> None:
        try:
            self._add_stream(_connect(self.location.path), SERVER)
        except OSError:
            # Nobody listens yet, or not any more, or too many wait: all of them may change.
            self._schedule_retry()

    def _schedule_retry(self) -> None:
        self._retry_at = time.monotonic() + self._retry_delay
        self._retry_delay = min(2 * self._retry_delay, MAX_RETRY_S)


class UnixTransport:
    """``unix:///path.sock``: one server and its clients, in any processes of one host."""

    capabilities = Capabilities(max_frame=MAX_FRAME, attests_peers=HAS_PEER_CREDENTIALS)
    options: Mapping[str, Callable[[str], Any]] = {"max_frame": read_size}

    def bind(self, location: Location) -> _ServerLink:
        """Open the server's end. Raises LocationInUse, BadLocation, TransportError."""
        capabilities = self._capabilities(location)
        try:
            return _ServerLink(location, capabilities)
        except OSError as error:
            raise _open_error(location, error) from error

    def connect(self, location: Location) -> _ClientLink:
        """Open the client's end; the server may come later. Raises BadLocation, TransportError."""
        capabilities = self._capabilities(location)
        try:
            return _ClientLink(location, capabilities)
        except OSError as error:
            raise _open_error(location, error) from error

    def _capabilities(self, location: Location) -> Capabilities:
        options = location.read(self.options)
        if location.host or not location.path.strip("/"):
            raise BadLocation(f"{location} names no file: write three slashes, for example unix:///tmp/events.sock")
        if len(os.fsencode(location.path)) > LONGEST_PATH:
            raise BadLocation(f"the path of {location} is over {LONGEST_PATH} bytes; choose a shorter one")
        return replace(self.capabilities, **options) if options else self.capabilities


def _open_error(location: Location, error: OSError) -> TransportError:
    return TransportError(f"cannot open {location}: {error.strerror}; choose another path")


def _listen(path: str) -> tuple[socket.socket, os.stat_result]:
    """Return a socket that listens at a path whose claim is ours, and the file that it made."""
    _remove_stale_socket(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.bind(path)
        # Nobody can connect before it listens, so nobody ever meets the wider permissions.
        os.chmod(path, 0o600)  # noqa: PTH101
        listener.listen(LISTEN_BACKLOG)
        return listener, os.lstat(path)
    except OSError:
        listener.close()
        raise


def _remove_stale_socket(path: str) -> None:
    """Remove the socket of a server that died: whoever claims its path may."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "a file which is not a socket is in the way", path)
        os.unlink(path)  # noqa: PTH108


def _connect(path: str) -> socket.socket:
    """Return a connected socket: a Unix socket connects at once or not at all."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        connection.connect(path)
        return connection
    except OSError:
        connection.close()
        raise


_TRANSPORT: Final = UnixTransport()


@hookimpl
def remit_transport(scheme: str) -> Transport | None:
    """Return the transport of ``unix:``."""
    return _TRANSPORT if scheme == "unix" else None
