"""Wire: one connection to Redis: commands out, answers and messages in, and never a wait."""

from __future__ import annotations

import select
import socket
import ssl
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any, Final

import hiredis

__all__ = ["SILENCE", "UNANSWERED", "Answered", "Denied", "Lost", "Wire"]


UNANSWERED: Final = 1024 * 1024
"""Bytes of commands that may wait for their answers."""
SILENCE: Final = 10.0
"""Seconds without a byte, while answers are due, after which a connection counts as dead."""
CHUNK: Final = 64 * 1024
"""Bytes read in one go: few enough to be parsed within a verb's time, and more than the 16 KiB of a TLS record, of
which nothing may be left where poll does not see it."""
NOTHING: Final = object()
PASSING: Final = ("LOADING", "MASTERDOWN", "BUSY", "TRYAGAIN")
"""Errors of a Redis that only needs time."""

_pack: Callable[[tuple[bytes | int, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]

Answered = Callable[[Any, Any], None]
"""Called with what the question was about and with the answer."""


class Lost(Exception):
    """Raised when a connection has ended or is of no use any more; the text says why."""


class Denied(Lost):
    """Raised when Redis answers that it will not do what was asked."""


class Wire:
    """A connection that speaks RESP3, in which answers and pub/sub messages share one stream in true order.

    ``heard`` is called with the channel and the data of each message.
    """

    def __init__(self, connection: socket.socket, heard: Callable[[bytes, bytes], None]) -> None:
        self._connection = connection
        self._heard = heard
        self._reader = hiredis.Reader(notEnoughData=NOTHING)
        self._feed: Callable[[bytearray, int, int], None] = self._reader.feed  # type: ignore[assignment]
        self._buffer = bytearray(CHUNK)
        self._out = bytearray()
        self._due: deque[tuple[Answered, Any, int]] = deque()
        self._patient_since = 0.0
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self.unanswered = 0
        """Bytes of commands whose answers have not come."""

    def fileno(self) -> int:
        """Return the connection's descriptor."""
        return self._connection.fileno()

    @property
    def events(self) -> int:
        """The poll events worth waiting for."""
        return select.POLLIN | select.POLLOUT if self._out else select.POLLIN

    def room(self, size: int) -> bool:
        """Whether a command of ``size`` bytes may be sent now."""
        return self.unanswered + size <= UNANSWERED or not self.unanswered

    def ask(self, answered: Answered, about: Any, *words: bytes | int) -> None:
        """Send a command; ``answered`` will be called. Raises Lost."""
        command = _pack(words)
        size = len(command)
        if not self._due:
            self._patient_since = monotonic()
        self._due.append((answered, about, size))
        self.unanswered += size
        self._write(command)

    def subscribe(self, *channels: bytes) -> None:
        """Hear these channels from now on. Raises Lost."""
        self._write(_pack((b"SUBSCRIBE", *channels)))

    def unsubscribe(self, *channels: bytes) -> None:
        """Hear these channels no more. Raises Lost."""
        self._write(_pack((b"UNSUBSCRIBE", *channels)))

    def tend(self) -> None:
        """Write what had to wait and take in what has come. Never blocks. Raises Lost."""
        if self._poll.poll(0):
            self._read()
        if self._out:
            self._flush()

    def check(self, now: float) -> None:
        """Raise Lost if answers are due and nothing has come for `SILENCE` seconds."""
        if self._due and now - self._patient_since > SILENCE:
            raise Lost(f"redis has not answered for {SILENCE:.0f} s")

    def drain(self, seconds: float) -> None:
        """Wait up to ``seconds`` until every command is answered. Raises Lost."""
        deadline = monotonic() + seconds
        while self._due and (remaining := deadline - monotonic()) > 0:
            poll = select.poll()
            poll.register(self._connection, self.events)
            poll.poll(remaining * 1000)
            self.tend()

    def close(self) -> None:
        """End the connection, also for processes that inherited it by fork."""
        with suppress(OSError):  # it may have ended already
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def forked(self) -> None:
        """Give back the descriptor that a forked child inherited. The connection itself stays the parent's."""
        self._connection.close()

    def _read(self) -> None:
        try:
            count = self._connection.recv_into(self._buffer)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError as error:
            raise Lost(f"the connection to redis broke: {error}") from error
        if not count:
            raise Lost("redis closed the connection")
        self._patient_since = monotonic()
        try:
            self._feed(self._buffer, 0, count)
            self._parse()
        except hiredis.ProtocolError as error:
            raise Lost(f"redis sent what is no RESP: {error}") from error

    def _parse(self) -> None:
        while (reply := self._reader.gets()) is not NOTHING:
            if type(reply) is hiredis.PushNotification:
                if reply[0] == b"message":
                    self._heard(reply[1], reply[2])
                continue
            if isinstance(reply, hiredis.ReplyError):
                kind = Lost if str(reply).startswith(PASSING) else Denied
                raise kind(f"redis answered: {reply}")
            if not self._due:
                raise Lost("redis answered what was not asked")
            answered, about, size = self._due.popleft()
            self.unanswered -= size
            answered(about, reply)

    def _write(self, command: bytes) -> None:
        if self._out:
            self._out += command
            self._flush()
            return
        sent = self._sent(command)
        if sent < len(command):
            self._out += memoryview(command)[sent:]

    def _flush(self) -> None:
        while self._out:
            sent = self._sent(self._out)
            if not sent:
                return
            del self._out[:sent]

    def _sent(self, data: bytes | bytearray) -> int:
        try:
            return self._connection.send(data)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0
        except OSError as error:
            raise Lost(f"the connection to redis broke: {error}") from error
