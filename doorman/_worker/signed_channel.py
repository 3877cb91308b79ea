"""Signed, numbered and chunked messages between a manager and one of its processes.

An entry is a call or a result of a pool, or the result or the progress of a task. One event carries a serial number, a
group of entries and a signature over both and the purpose of the channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeAlias

import msgspec

from doorman.identity import Credential

CHUNK_BYTES: Final = 256 * 1024
"""Bytes of entries in one event: below the frame limit of every transport."""

Entry: TypeAlias = tuple[int, int, bytes]
"""A number such as that of a call, the kind of the entry (0 or more), and its content."""
Message: TypeAlias = tuple[int, bytes, bytes]
"""Serial number, encoded entries and signature of an event."""

TASK_REPORTS: Final = b"doorman.report"
"""Purpose of the channel from the process of a task."""
RESULT: Final = 0
"""Kind on that channel: an encoded `TaskOutcome`."""
PROGRESS: Final = 1
"""Kind on that channel: an encoded `Progress`."""

# Internal kinds. They are negative, so that one comparison of an event's first entry finds them.
_LARGE: Final = -1  # head of an entry that is sent in chunks: has its number, and as content its kind and size
_CHUNK: Final = -2

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[Entry]).decode
_decode_head: Final = msgspec.msgpack.Decoder(tuple[int, int]).decode


class SignedSender:
    """Sends entries. ``send`` is called with the serial number, the group and the signature of each event, in order.

    Calls of the method `send` must not overlap: the receiver refuses a serial number out of order.
    """

    def __init__(self, credential: Credential, purpose: bytes, send: Callable[[int, bytes, bytes], None]) -> None:
        self._credential, self._purpose, self._send = credential, purpose, send
        self._serial = 0

    def send(self, entries: Iterable[Entry]) -> None:
        """Send the entries in as few events as possible. An entry larger than CHUNK_BYTES is sent in chunks."""
        for message in self.signed(entries):
            self.post(message)

    def signed(self, entries: Iterable[Entry]) -> Iterator[Message]:
        """Yield the events for `post`, one at a time because memory may be limited."""
        for serial, group in enumerate(_groups(entries), self._serial + 1):
            data = _encode(group)
            yield serial, data, self._credential.sign(_label(self._purpose, serial) + data)

    def post(self, message: Message) -> None:
        """Send an event. The receiver ignores one that it has: after an interrupt it may be sent again."""
        # Only now, so that serial numbers have no gap if memory runs out above, as it may within a limit.
        self._serial = message[0]
        self._send(*message)


class SignedReceiver:
    """Returns the entries of events that the other end has signed, each once and in order.

    With ``joins`` serial numbers may be missing, because an adopted process has sent earlier events to another manager.
    An entry whose first chunks are missing is dropped.
    """

    def __init__(self, credential: Credential, purpose: bytes, *, joins: bool = False) -> None:
        self._credential, self._purpose, self._joins = credential, purpose, joins
        self._serial = 0
        self._head: tuple[int, int] | None = None
        self._missing = 0
        self._chunks: list[bytes] = []
        self._before: tuple[Any, ...] = ()  # The serial number of the last event, and the state before it.

    def receive(self, serial: int, data: bytes, signature: bytes, *, again: bool = False) -> list[Entry]:
        """Return the complete entries of one event. Raises ValueError if it is forged, replayed or out of order.

        ``again`` if an interrupt has ended the first call for this event, or the use of its entries.
        """
        if again and self._before[:1] == (serial,):
            _, self._serial, self._head, self._missing, self._chunks, count = self._before
            del self._chunks[count:]
        else:
            self._before = serial, self._serial, self._head, self._missing, self._chunks, len(self._chunks)
        try:
            expected = serial == self._serial + 1 or (self._joins and serial > self._serial)
            signed = expected and self._credential.check(_label(self._purpose, serial) + data, signature)
        except (TypeError, AttributeError, OverflowError):  # Any peer may have sent the arguments.
            signed = False
        if not signed:
            raise ValueError("not signed by the other end, or not its next message")
        if serial != self._serial + 1:
            self._head = None
        self._serial = serial
        entries = _decode(data)
        return list(self._reassembled(entries)) if entries[0][1] < 0 else entries

    def _reassembled(self, entries: list[Entry]) -> Iterator[Entry]:
        for number, kind, data in entries:
            if kind == _LARGE:
                own_kind, self._missing = _decode_head(data)
                self._head, self._chunks = (number, own_kind), []
            elif self._head is not None:
                self._chunks.append(data)
                self._missing -= len(data)
                if self._missing <= 0:
                    yield *self._head, b"".join(self._chunks)
                    self._head, self._chunks = None, []


def _groups(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Yield the entries of each event."""
    group: list[Entry] = []
    size = 0
    for entry in entries:
        length = len(entry[2])
        if group and size + length > CHUNK_BYTES:
            yield group
            group, size = [], 0
        if length > CHUNK_BYTES:
            yield from _chunks(entry)
        else:
            group.append(entry)
            size += length
    if group:
        yield group


def _chunks(entry: Entry) -> Iterator[list[Entry]]:
    """Yield the groups of a large entry. Only one chunk at a time is copied, because memory may be limited."""
    number, kind, data = entry
    view = memoryview(data)
    head: list[Entry] = [(number, _LARGE, _encode((kind, len(data))))]
    for start in range(0, len(data), CHUNK_BYTES):
        yield [*head, (0, _CHUNK, bytes(view[start : start + CHUNK_BYTES]))]
        head = []


def _label(purpose: bytes, serial: int) -> bytes:
    return purpose + serial.to_bytes(8, "big")
