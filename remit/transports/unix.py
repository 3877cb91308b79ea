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
from remit.transports.stream_link import ATTESTS, Stream, StreamLink

__all__ = ["UnixTransport", "remit_transport"]

MAX_FRAME: Final = 16 * 1024 * 1024
"""Bytes of the largest frame, unless the location's ``max_frame`` says otherwise."""
LONGEST_PATH: Final = 107
"""Bytes that the kernel allows in a socket's path."""
PENDING: Final = 4096
"""Connections that may wait to be accepted."""
ACCEPTS: Final = 64
"""Connections accepted in one go."""
ACCEPT_PAUSE: Final = 0.1
"""Seconds without accepting after the system had no descriptor left."""
FIRST_RETRY: Final = 0.01
"""Seconds between a lost connection and the first attempt to connect again; doubled by each that fails."""
LAST_RETRY: Final = 0.25
"""Seconds between two attempts at the most."""

_tokens = itertools.count(1)


class _ServerLink(StreamLink):
    """The server's end: a listening socket, and a stream per peer."""

    def __init__(self, location: Location, capabilities: Capabilities) -> None:
        self._path = location.path
        with contextlib.ExitStack() as undo:
            self._claim = FileLock(self._path)
            undo.callback(self._claim.release)
            self._listener, self._node = _listen(self._path)
            undo.callback(self._listener.close)
            super().__init__(location, capabilities)
            undo.pop_all()
        self._poller.register(self._listener, select.POLLIN)

    def _other(self, descriptor: int) -> None:
        if descriptor == self._listener.fileno():
            self._accept()

    def _accept(self) -> None:
        for _ in range(ACCEPTS):
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ECONNABORTED:
                    # Out of descriptors, most likely: to ask at once again would only burn the processor.
                    self._poller.unregister(self._listener)
                    self._due = time.monotonic() + ACCEPT_PAUSE
                    return
            else:
                self._add(connection, next(_tokens))

    def _retry(self) -> None:
        self._poller.register(self._listener, select.POLLIN)

    def _stop(self) -> None:
        with contextlib.suppress(OSError):
            if os.path.samestat(self._node, os.lstat(self._path)):
                os.unlink(self._path)  # noqa: PTH108
        self._listener.close()

    def _discard(self) -> None:
        super()._discard()
        self._listener.close()
        if self._forked:
            self._claim.forget()
        else:
            self._claim.release()


class _ClientLink(StreamLink):
    """The client's end: one stream, made anew whenever it is lost."""

    def __init__(self, location: Location, capabilities: Capabilities) -> None:
        self._pause = FIRST_RETRY
        super().__init__(location, capabilities)
        try:
            self._add(_dial(location.path), SERVER)
        except PermissionError as error:
            self._discard()
            raise TransportError(
                f"you may not connect to {location.path}: ask its owner, or run as its owner"
            ) from error
        except OSError:
            self._later()

    def _serve(self, stream: Stream, event: int) -> None:
        super()._serve(stream, event)
        if self._arrivals and isinstance(self._arrivals[0], Frame):
            self._pause = FIRST_RETRY

    def _drop(self, stream: Stream) -> None:
        super()._drop(stream)
        self._later()

    def _retry(self) -> None:
        try:
            self._add(_dial(self.location.path), SERVER)
        except OSError:
            # Nobody listens yet, or not any more, or too many wait: all of them may change.
            self._later()

    def _later(self) -> None:
        self._due = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LAST_RETRY)


class UnixTransport:
    """``unix:///path.sock``: one server and its clients, in any processes of one host."""

    capabilities = Capabilities(max_frame=MAX_FRAME, attests_peers=ATTESTS)
    options: Mapping[str, Callable[[str], Any]] = {"max_frame": read_size}

    def bind(self, location: Location) -> _ServerLink:
        """Open the server's end. Raises LocationInUse, BadLocation, TransportError."""
        capabilities = self._capabilities(location)
        try:
            return _ServerLink(location, capabilities)
        except OSError as error:
            raise _refusal(location, error) from error

    def connect(self, location: Location) -> _ClientLink:
        """Open the client's end; the server may come later. Raises BadLocation, TransportError."""
        capabilities = self._capabilities(location)
        try:
            return _ClientLink(location, capabilities)
        except OSError as error:
            raise _refusal(location, error) from error

    def _capabilities(self, location: Location) -> Capabilities:
        options = location.read(self.options)
        if location.host or not location.path.strip("/"):
            raise BadLocation(f"{location} names no file: write three slashes, for example unix:///tmp/events.sock")
        if len(os.fsencode(location.path)) > LONGEST_PATH:
            raise BadLocation(f"the path of {location} is over {LONGEST_PATH} bytes; choose a shorter one")
        return replace(self.capabilities, **options) if options else self.capabilities


def _refusal(location: Location, error: OSError) -> TransportError:
    return TransportError(f"cannot open {location}: {error.strerror}; choose another path")


def _listen(path: str) -> tuple[socket.socket, os.stat_result]:
    """Return a socket that listens at a path whose claim is ours, and the file that it made."""
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.bind(path)
        # Nobody can connect before it listens, so nobody ever meets the wider permissions.
        os.chmod(path, 0o600)  # noqa: PTH101
        listener.listen(PENDING)
        return listener, os.lstat(path)
    except OSError:
        listener.close()
        raise


def _remove_stale(path: str) -> None:
    """Remove the socket of a server that died: whoever claims its path may."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "a file which is not a socket is in the way", path)
        os.unlink(path)  # noqa: PTH108


def _dial(path: str) -> socket.socket:
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
