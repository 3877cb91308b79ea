"""Connections to Redis: opening one without blocking the link, and RESP3 over a non-blocking socket.

hiredis packs and parses. redis-py's own Connection is not used to connect: importing redis 8.1 takes about 18 times
as long as hiredis and ssl (it loads asyncio and cluster support), in each process that opens a link; and its socket,
which must become non-blocking here, is a private attribute.
"""

from __future__ import annotations

import select
import socket
import ssl
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

import hiredis

from remit.errors import TransportError
from remit.location import Location
from remit.transport import DaemonThread, Waker

DEFAULT_PORT: Final = 6379
CONNECT_TIMEOUT_S: Final = 3.0
"""Time within which Redis must accept a connection, and answer each command of the handshake."""
TLS_PROBE_S: Final = 0.2
"""Time without a TLS handshake after which it is checked whether Redis speaks TLS at all."""
MAX_UNANSWERED_BYTES: Final = 1024 * 1024
"""Bytes of commands that may wait for their replies."""
REPLY_TIMEOUT_S: Final = 10.0
"""A connection without a received byte for this time, while replies are due, counts as dead."""
READ_BYTES: Final = 64 * 1024
"""Size of a read: small enough to be parsed within the time of a call, and larger than a TLS record of 16 KiB, since
poll does not see a rest that stays decrypted in the SSL object."""
INCOMPLETE: Final = object()
"""hiredis's result while a reply is incomplete. Its default, False, is also a reply of RESP3."""
TEMPORARY_ERRORS: Final = ("LOADING", "MASTERDOWN", "BUSY", "TRYAGAIN")
"""First words of errors that Redis returns only for a time."""

_pack: Callable[[tuple[Any, ...]], bytes] = hiredis.pack_command

OnReply = Callable[[Any, Any], None]
"""Called with the context of the command and with its reply. The context saves a closure for each frame."""


class RedisRefused(TransportError):
    """Raised when Redis answers with an error that another attempt will not change."""


class ConnectionLost(Exception):
    """Raised when a connection has ended or cannot be used any more. The text has the reason."""


class CommandRefused(ConnectionLost):
    """Raised when Redis refuses a command, for example by its access rules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Everything needed to open a connection. ``str`` of the location hides the password."""

    location: Location
    database: int
    authorities: str | None
    """File of the certificate authorities, if not the system's."""


def open_connection(address: Address) -> socket.socket:
    """Return a connection that speaks RESP3 and has selected its database. Blocks. Raises TransportError."""
    try:
        connection = _connect(address)
    except ssl.SSLCertVerificationError as error:
        raise RedisRefused(
            f"the certificate of redis at {address.location} is not trusted: {error.verify_message}; "
            "name the file of its authority in the option 'ca'"
        ) from error
    except OSError as error:
        raise TransportError(
            f"cannot reach redis at {address.location}: {error}; check that redis-server runs there and listens"
        ) from error
    try:
        _greet(connection, address)
        connection.setblocking(False)
    except OSError as error:
        connection.close()
        raise TransportError(f"redis at {address.location} does not answer: {error or 'it closed'}") from error
    except TransportError:
        connection.close()
        raise
    return connection


def _connect(address: Address) -> socket.socket:
    location = address.location
    with ExitStack() as undo:
        if location.scheme == "redis+unix":
            connection = undo.enter_context(socket.socket(socket.AF_UNIX))
            connection.settimeout(CONNECT_TIMEOUT_S)
            connection.connect(location.path)
        else:
            host = location.host or "localhost"
            connection = socket.create_connection((host, location.port or DEFAULT_PORT), CONNECT_TIMEOUT_S)
            undo.enter_context(connection).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if location.scheme == "rediss":
                context = ssl.create_default_context(cafile=address.authorities)
                secured = context.wrap_socket(connection, server_hostname=host, do_handshake_on_connect=False)
                connection = undo.enter_context(secured)
                _shake_hands(secured, address)
        undo.pop_all()
        return connection


def _shake_hands(connection: ssl.SSLSocket, address: Address) -> None:
    """Complete the TLS handshake. Raises RedisRefused if Redis speaks no TLS there: it waits for the end of a line."""
    connection.settimeout(TLS_PROBE_S)
    try:
        connection.do_handshake()
    except TimeoutError:
        with socket.create_connection(connection.getpeername()[:2], CONNECT_TIMEOUT_S) as plain:
            plain.settimeout(TLS_PROBE_S)
            plain.sendall(b"PING\r\n")
            with suppress(TimeoutError):
                if plain.recv(1) in (b"+", b"-"):
                    raise RedisRefused(
                        f"redis at {address.location} speaks no TLS on this port; write redis://"
                    ) from None
        connection.settimeout(CONNECT_TIMEOUT_S)
        connection.do_handshake()
    connection.settimeout(CONNECT_TIMEOUT_S)


def _greet(connection: socket.socket, address: Address) -> None:
    reader = hiredis.Reader(notEnoughData=INCOMPLETE)
    hello: list[str | int] = ["HELLO", 3, "SETNAME", "remit"]
    user, password = address.location.username, address.location.password
    if password:
        # HELLO requires a user name, also where the server has only a password: it is "default" then.
        hello[2:2] = ["AUTH", user or "default", password]
    select_database: list[str | int] = ["SELECT", address.database]
    for words in (hello, select_database):
        connection.sendall(_pack(tuple(words)))
        reply = _receive_reply(connection, reader)
        if isinstance(reply, hiredis.ReplyError):
            raise _greeting_error(str(reply), str(words[0]), address)


def _receive_reply(connection: socket.socket, reader: hiredis.Reader) -> Any:
    while (reply := reader.gets()) is INCOMPLETE:
        data = connection.recv(READ_BYTES)
        if not data:
            raise ConnectionResetError("it closed the connection")
        try:
            reader.feed(data)
        except hiredis.HiredisError as error:
            raise RedisRefused(f"this is not a redis-server: {error}") from error
    return reply


def _greeting_error(reply: str, command: str, address: Address) -> TransportError:
    code = reply.partition(" ")[0]
    if code in ("WRONGPASS", "NOAUTH", "NOPERM"):
        return RedisRefused(
            f"redis at {address.location} refuses the user: {reply}; check the URL's username and password"
        )
    if command == "HELLO" and ("unknown command" in reply or code == "NOPROTO"):
        return RedisRefused(f"redis at {address.location} is too old: {reply}; it must be 6.2 or newer")
    if command == "SELECT":
        return RedisRefused(f"redis at {address.location} has no database {address.database}: {reply}")
    return TransportError(f"redis at {address.location} refuses the handshake: {reply}")


class BackgroundConnect:
    """One attempt to connect, in a thread: a host that does not respond blocks `open_connection` for seconds.

    Raises TransportError if there is no descriptor or no thread left.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._results: deque[socket.socket | TransportError] = deque()
        self._abandoned = False
        self._thread = DaemonThread(self._run, "remit-redis-dial")
        try:
            with ExitStack() as undo:
                self._waker = undo.enter_context(closing(Waker()))
                self._thread.start()
                undo.pop_all()
        except (OSError, RuntimeError) as error:  # Python 3.12 and later start no threads at interpreter shutdown
            raise TransportError(f"cannot connect to redis at {address.location}: {error}") from error

    def fileno(self) -> int:
        """Return the descriptor that is readable once the attempt has ended."""
        return self._waker.fileno()

    def result(self) -> socket.socket | None:
        """Return the connection once, or None while the attempt lasts. Raises TransportError."""
        if not self._results:
            return None
        self._thread.join(CONNECT_TIMEOUT_S)  # Short, since there is a result: the thread only wakes this one.
        self._waker.close()
        result = self._results.pop()
        if isinstance(result, TransportError):
            raise result
        return result

    def abandon(self) -> None:
        """Close the connection as soon as the attempt has ended."""
        # This thread sets the flag before it looks for a result. The other thread adds the result before it reads the
        # flag. So at least one of them discards the result, and `deque.pop` lets only one do it.
        self._abandoned = True
        if self._results:
            self._thread.join(CONNECT_TIMEOUT_S)
            self._discard_result()

    def close_inherited(self) -> None:
        """Close the descriptors in a forked child. The thread exists in the parent only."""
        self._waker.close()
        self._discard_result()

    def _run(self) -> None:
        try:
            self._results.append(open_connection(self._address))
        except TransportError as error:
            self._results.append(error)
        self._waker.wake()
        if self._abandoned:
            self._discard_result()

    def _discard_result(self) -> None:
        with suppress(IndexError):
            result = self._results.pop()
            self._waker.close()
            if isinstance(result, socket.socket):
                result.close()


class RespConnection:
    """A connection that speaks RESP3. In RESP2 a connection with subscriptions accepts no other commands.

    ``on_message`` is called with the channel and the data of each pub/sub message, in order with the replies.
    """

    def __init__(self, connection: socket.socket, on_message: Callable[[bytes, bytes], None]) -> None:
        self._connection = connection
        self._on_message = on_message
        self._reader = hiredis.Reader(notEnoughData=INCOMPLETE)
        self._feed: Callable[[bytearray, int, int], None] = self._reader.feed  # type: ignore[assignment]
        self._buffer = bytearray(READ_BYTES)
        self._unsent = bytearray()
        self._pending: deque[tuple[OnReply | None, Any, int]] = deque()
        self._last_received = 0.0
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._unanswered_bytes = 0

    def fileno(self) -> int:
        """Return the connection's descriptor."""
        return self._connection.fileno()

    @property
    def events(self) -> int:
        """The events to poll for."""
        return select.POLLIN | select.POLLOUT if self._unsent else select.POLLIN

    def has_room(self, size: int) -> bool:
        """Return whether a command of ``size`` bytes may be sent now."""
        return self._unanswered_bytes + size <= MAX_UNANSWERED_BYTES or not self._unanswered_bytes

    def send_command(self, on_reply: OnReply | None, context: Any, *words: bytes | int) -> None:
        """Send a command and call ``on_reply(context, reply)`` later, if given. Raises ConnectionLost."""
        command = _pack(words)
        size = len(command)
        if not self._pending:
            self._last_received = monotonic()
        self._pending.append((on_reply, context, size))
        self._unanswered_bytes += size
        self._write(command)

    def send_without_reply(self, *words: bytes) -> None:
        """Send a command that RESP3 answers with a push message: SUBSCRIBE or UNSUBSCRIBE. Raises ConnectionLost."""
        self._write(_pack(words))

    def process(self) -> None:
        """Read and handle what has arrived, and write what is unsent. Never blocks. Raises ConnectionLost."""
        if self._poll.poll(0):
            self._read()
        if self._unsent:
            self._flush()

    def check_alive(self, now: float) -> None:
        """Raise ConnectionLost if replies have been due for too long."""
        if self._pending and now - self._last_received > REPLY_TIMEOUT_S:
            raise ConnectionLost(f"redis has not answered for {REPLY_TIMEOUT_S:.0f} s")

    def drain(self, seconds: float) -> None:
        """Wait up to ``seconds`` until every command is answered. Raises ConnectionLost."""
        deadline = monotonic() + seconds
        while self._pending and (remaining := deadline - monotonic()) > 0:
            poll = select.poll()
            poll.register(self._connection, self.events)
            poll.poll(remaining * 1000)
            self.process()

    def close(self) -> None:
        """End the connection, also for the processes that inherited it by fork."""
        with suppress(OSError):  # it may have ended already
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def close_inherited(self) -> None:
        """Close the descriptor in a forked child. A shutdown would end the parent's connection."""
        self._connection.close()

    def _read(self) -> None:
        try:
            count = self._connection.recv_into(self._buffer)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError as error:
            raise ConnectionLost(f"the connection to redis broke: {error}") from error
        if not count:
            raise ConnectionLost("redis closed the connection")
        self._last_received = monotonic()
        try:
            self._feed(self._buffer, 0, count)
            self._parse()
        except hiredis.ProtocolError as error:
            raise ConnectionLost(f"redis sent invalid RESP: {error}") from error

    def _parse(self) -> None:
        while (reply := self._reader.gets()) is not INCOMPLETE:
            if type(reply) is hiredis.PushNotification:
                if reply[0] == b"message":
                    self._on_message(reply[1], reply[2])
                continue
            if isinstance(reply, hiredis.ReplyError):
                kind = ConnectionLost if str(reply).startswith(TEMPORARY_ERRORS) else CommandRefused
                raise kind(f"redis answered: {reply}")
            if not self._pending:
                raise ConnectionLost("redis sent a reply without a command")
            on_reply, context, size = self._pending.popleft()
            self._unanswered_bytes -= size
            if on_reply is not None:
                on_reply(context, reply)

    def _write(self, command: bytes) -> None:
        # Most commands leave immediately, without a copy.
        sent = 0 if self._unsent else self._send_now(command)
        if sent < len(command):
            self._unsent += memoryview(command)[sent:]
            self._flush()

    def _flush(self) -> None:
        while self._unsent:
            sent = self._send_now(self._unsent)
            if not sent:
                return
            del self._unsent[:sent]

    def _send_now(self, data: bytes | bytearray) -> int:
        try:
            return self._connection.send(data)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0
        except OSError as error:
            raise ConnectionLost(f"the connection to redis broke: {error}") from error
