"""Transport over Unix stream sockets: `unix:`. It needs no server program, and the kernel attests each peer."""

from __future__ import annotations

import contextlib
import errno
import itertools
import select
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from remit.errors import LocationInUse, TransportError
from remit.location import Location, read_size
from remit.runtime_dirs import socket_path
from remit.transport import SERVER, Capabilities, SocketFile, Transport, hookimpl
from remit.transports.stream_link import HAS_PEER_CREDENTIALS, Stream, StreamLink

MAX_FRAME: Final = 16 * 1024 * 1024
"""Default of the option ``max_frame``, in bytes."""
LISTEN_BACKLOG: Final = 4096
"""Connections that may wait for accept()."""
MAX_ACCEPTS_PER_TURN: Final = 64
"""Connections accepted before the existing ones are served again."""
ACCEPT_PAUSE_S: Final = 0.1
"""Pause in accepting after the process ran out of descriptors."""
FIRST_RETRY_S: Final = 0.01
"""Delay of the first attempt to reconnect. Each failure doubles it."""
MAX_RETRY_S: Final = 0.25
"""Longest delay between two attempts."""

_REASONS: Final = {
    errno.ENOENT: "no such file; is a server there?",
    errno.ECONNREFUSED: "connection refused; its server has ended; is another server there?",
    errno.EACCES: "permission denied; ask its owner, or run as its owner",
    errno.EAGAIN: "its queue of connections is full; is the server ticked?",
    errno.EMFILE: "out of descriptors; close clients that are not used, or raise ulimit -n",
}
"""Why an attempt to connect failed, by error number."""
_ADVICE: Final = dict.fromkeys((errno.EMFILE, errno.ENFILE), "close clients that are not used, or raise ulimit -n")
_ADVICE[errno.ENOENT] = "create its folder, or choose another path"
_tokens = itertools.count(1)


class _ServerLink(StreamLink):
    """The server's end: a listening socket, and a stream for each peer."""

    def __init__(self, location: Location, capabilities: Capabilities) -> None:
        self._accepted: list[tuple[socket.socket, object]] = []  # At most one, until it has a stream.
        with contextlib.ExitStack() as undo:
            self._file = SocketFile(location.path)
            undo.callback(self._file.release)
            self._listener = _listen(self._file)
            undo.callback(self._listener.close)
            super().__init__(location, capabilities)
            undo.pop_all()
        self._poller.register(self._listener, select.POLLIN)

    def check_location(self) -> None:
        """Listen again if the socket's file was removed. Raises LocationInUse, TransportError."""
        self._check()
        if self._file.is_intact():
            return
        self._handle_listener(self._listener.fileno())  # Clients that have connected before.
        try:
            former, self._listener = self._listener, _listen(self._file)
        except OSError as error:
            raise _open_error(self.location, error) from error
        if self._retry_at is None:
            self._poller.unregister(former)
            self._poller.register(self._listener, select.POLLIN)
        former.close()

    def _handle_listener(self, descriptor: int) -> None:
        if descriptor != self._listener.fileno():
            return  # a waker, or a stream removed in this turn
        for _ in range(MAX_ACCEPTS_PER_TURN):
            try:
                # One call stores it: an exception of a signal handler may keep every frame, with its sockets, alive.
                self._accepted.extend(map(socket.socket.accept, (self._listener,)))
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ECONNABORTED:
                    # Probably out of descriptors. The listener stays readable, so polling it would spin.
                    self._retry_at = time.monotonic() + ACCEPT_PAUSE_S
                    self._poller.unregister(self._listener)
                    return
            else:
                self._add_stream(self._accepted[0][0], next(_tokens))
                self._accepted.clear()

    def recover(self) -> bool:
        """End a connection whose accept() or use was interrupted; its client connects again."""
        for connection, _ in self._accepted:
            self._active = self._watched.get(connection.fileno())
            if self._active is None:
                connection.close()
        self._accepted.clear()
        return super().recover()

    def _retry(self) -> None:
        with contextlib.suppress(FileExistsError):  # An interrupted call has registered it.
            self._poller.register(self._listener, select.POLLIN)
        self._retry_at = None

    def _close_descriptors(self) -> None:
        super()._close_descriptors()
        self._listener.close()

    def close(self, linger: float) -> None:
        """Close the link and release the path. Accepted frames may still leave for ``linger`` seconds."""
        if not self._forked:
            self._file.unlink()
            self._listener.close()
        super().close(linger)
        self._file.release()


class _ClientLink(StreamLink):
    """The client's end: one stream, which is replaced when it is lost."""

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
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._close_descriptors()
                raise
            self._note_refusal(error)

    def _remove_stream(self, stream: Stream) -> None:
        super()._remove_stream(stream)
        self.why = f"the connection was lost: {stream.closed_reason}"
        # A frame proves a server. connect() does not: it succeeds before the server accepts, which may be about to die.
        if stream.has_received:
            self._retry_delay = FIRST_RETRY_S
        self._schedule_retry()

    def _retry(self) -> None:
        try:
            if not self.streams:  # An interrupted call may have connected.
                self._add_stream(_connect(self.location.path), SERVER)
            self._retry_at = None
            self.why = ""
        except OSError as error:
            # No server yet, or no longer, or its accept queue is full (EAGAIN): each may change.
            self._note_refusal(error)

    def _note_refusal(self, error: OSError) -> None:
        reason = _REASONS.get(error.errno or 0, error.strerror)
        self.why = f"cannot connect to {self.location.path}: {reason}"
        self._schedule_retry()

    def recover(self) -> bool:
        """End a connection whose frames may have been cut, and connect again."""
        super().recover()
        if not self.streams and self._retry_at is None:
            self._schedule_retry()
        return True

    def _schedule_retry(self) -> None:
        self._retry_at = time.monotonic() + self._retry_delay
        self._retry_delay = min(2 * self._retry_delay, MAX_RETRY_S)


class UnixTransport:
    """``unix:///path.sock``: one server and its clients, in any processes of one host."""

    capabilities = Capabilities(max_frame=MAX_FRAME, attests_peers=HAS_PEER_CREDENTIALS)
    options: Mapping[str, Callable[[str], Any]] = {"max_frame": read_size}

    def bind(self, location: Location) -> StreamLink:
        """Open the server's link. Raises LocationInUse, BadLocation, TransportError."""
        return self._open(_ServerLink, location)

    def connect(self, location: Location) -> StreamLink:
        """Open the client's link. The server may start later. Raises BadLocation, TransportError."""
        return self._open(_ClientLink, location)

    def _open(self, kind: Callable[[Location, Capabilities], StreamLink], location: Location) -> StreamLink:
        options = location.read(self.options)
        socket_path(location)  # raises BadLocation
        try:
            return kind(location, replace(self.capabilities, **options) if options else self.capabilities)
        except OSError as error:
            raise _open_error(location, error) from error


def _open_error(location: Location, error: OSError) -> TransportError:
    if error.errno == errno.EADDRINUSE:  # Two servers repair or take over one path at the same time.
        return LocationInUse(f"{location} has a server already; stop it or choose another path")
    advice = _ADVICE.get(error.errno or 0, "choose another path")
    return TransportError(f"cannot open {location}: {error.strerror}; {advice}")


def _listen(file: SocketFile) -> socket.socket:
    """Return a socket that listens at a free path."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.bind(file.path)
        # Before listen(): no other user can connect while the file still has the permissions of the umask.
        file.mark_bound()
        listener.listen(LISTEN_BACKLOG)
        return listener
    except BaseException:
        listener.close()
        raise


def _connect(path: str) -> socket.socket:
    """Return a connected socket. A non-blocking Unix socket connects immediately or fails."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        connection.connect(path)
        return connection
    except BaseException:
        connection.close()
        raise


_TRANSPORT: Final = UnixTransport()


@hookimpl
def remit_transport(scheme: str) -> Transport | None:
    """Return the transport of ``unix:``."""
    return _TRANSPORT if scheme == "unix" else None
