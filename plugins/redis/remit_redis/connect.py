"""Dial: the step from an address to a connection on which Redis has said hello."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import hiredis

from remit.errors import TransportError
from remit.transport import Waker

__all__ = ["DIAL", "Address", "Dialling", "Refused", "connected"]


DIAL: Final = 3.0
"""Seconds within which Redis must take a connection and answer each greeting."""
READ: Final = 4096
NOTHING: Final = object()

_pack: Callable[[tuple[str | int, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]


class Refused(TransportError):
    """Raised when Redis answers, but not as it must: trying again will not help by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """All that it takes to open a connection. Only ``where`` may be shown."""

    where: str
    host: str
    port: int
    path: str
    username: str
    password: str = field(repr=False)
    database: int
    tls: bool
    authorities: str | None


def connected(address: Address) -> socket.socket:
    """Return a connection that speaks RESP3 and has chosen its database. Blocks. Raises TransportError."""
    try:
        connection = _opened(address)
    except ssl.SSLCertVerificationError as error:
        raise Refused(
            f"the certificate of redis at {address.where} is not trusted: {error.verify_message}; "
            "name the file of its authority in the option 'ca'"
        ) from error
    except OSError as error:
        raise TransportError(
            f"cannot reach redis at {address.where}: {error}; check that redis-server runs there and listens"
        ) from error
    try:
        _greet(connection, address)
        connection.setblocking(False)
    except OSError as error:
        connection.close()
        raise TransportError(f"redis at {address.where} does not answer: {error or 'it closed'}") from error
    except TransportError:
        connection.close()
        raise
    return connection


def _opened(address: Address) -> socket.socket:
    if address.path:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(DIAL)
            connection.connect(address.path)
        except OSError:
            connection.close()
            raise
        return connection
    connection = socket.create_connection((address.host, address.port), DIAL)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not address.tls:
        return connection
    try:
        context = ssl.create_default_context(cafile=address.authorities)
        return context.wrap_socket(connection, server_hostname=address.host)
    except OSError:
        connection.close()
        raise


def _greet(connection: socket.socket, address: Address) -> None:
    reader = hiredis.Reader(notEnoughData=NOTHING)
    hello: list[str | int] = ["HELLO", 3, "SETNAME", "remit"]
    if address.password:
        # HELLO names a user even where a server knows only a password: its name is then "default".
        hello[2:2] = ["AUTH", address.username or "default", address.password]
    select: list[str | int] = ["SELECT", address.database]
    for words in (hello, select):
        connection.sendall(_pack(tuple(words)))
        answer = _answer(connection, reader)
        if isinstance(answer, hiredis.ReplyError):
            raise _refusal(str(answer), str(words[0]), address)


def _answer(connection: socket.socket, reader: hiredis.Reader) -> Any:
    while (answer := reader.gets()) is NOTHING:
        data = connection.recv(READ)
        if not data:
            raise ConnectionResetError("it closed the connection")
        try:
            reader.feed(data)
        except hiredis.HiredisError as error:
            raise Refused(f"this is no redis-server: {error}") from error
    return answer


def _refusal(answer: str, asked: str, address: Address) -> TransportError:
    code = answer.partition(" ")[0]
    if code in ("WRONGPASS", "NOAUTH", "NOPERM"):
        return Refused(f"redis at {address.where} refuses the user: {answer}; check the URL's username and password")
    if asked == "HELLO" and ("unknown command" in answer or code == "NOPROTO"):
        return Refused(f"redis at {address.where} is too old: {answer}; it must be 6.2 or newer")
    if asked == "SELECT":
        return Refused(f"redis at {address.where} has no database {address.database}: {answer}")
    return TransportError(f"redis at {address.where} does not greet: {answer}")


class Dialling:
    """One attempt on a thread of its own, since a host that is away makes `connected` wait."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._waker = Waker()
        self._lock = threading.Lock()
        self._abandoned = False
        self._connection: socket.socket | None = None
        self._error: TransportError | None = None
        self._done = False
        self._thread = threading.Thread(target=self._run, name="remit-redis-dial", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # the interpreter is ending, or has too many threads
            self._done = True
            self._error = TransportError(f"cannot connect to redis at {address.where}: {error}")

    def fileno(self) -> int:
        """Return the descriptor that is readable once the attempt has ended."""
        return self._waker.fileno()

    def result(self) -> socket.socket | None:
        """Return the connection, or None while the attempt lasts. Raises TransportError. Not to be asked again."""
        if not self._done:
            return None
        self._tidy()
        if self._error is not None:
            raise self._error
        connection, self._connection = self._connection, None
        return connection

    def abandon(self) -> None:
        """Nobody will ask for the result: whatever comes of the attempt is closed."""
        with self._lock:
            self._abandoned = True
            if not self._done:
                return  # the thread tidies up
        self._tidy()
        if self._connection is not None:
            self._connection.close()

    def forked(self) -> None:
        """Give back the descriptors that a forked child inherited; the thread stayed with the parent."""
        self._waker.close()
        if self._connection is not None:
            self._connection.close()

    def _tidy(self) -> None:
        if self._thread.ident is not None:
            self._thread.join()  # it has only to wake us
        self._waker.close()

    def _run(self) -> None:
        try:
            self._connection = connected(self._address)
        except TransportError as error:
            self._error = error
        with self._lock:
            self._done = True
            abandoned = self._abandoned
        self._waker.wake()
        if abandoned:
            self._waker.close()
            if self._connection is not None:
                self._connection.close()
