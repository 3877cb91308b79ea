"""Page: memory that a worker shares with its manager, so that its death costs the call that it was running, no other.

A worker writes down which call it begins, and each result before the next call begins. What dies with the process on
its way, in a queue or on a transport's thread, is still on the page.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, Self, TypeAlias

import msgspec

from doorman.identity import Credential

__all__ = ["CrashRecord", "Entry", "Incoming", "Kind", "Outgoing"]


CHUNK: Final = 256 * 1024
"""Bytes of entries in one event: below what any transport carries."""

Entry: TypeAlias = tuple[int, int, bytes]
"""The number of a call, the kind of what is said of it, and its bytes."""


class Kind:
    """What an entry says. Plain numbers: they are compared for each call."""

    CALL: Final = 0
    """To a worker: run this."""
    LEAVE: Final = 1
    """To a worker: run no more, and end."""
    RETURNED: Final = 2
    """From a worker: a pickled value."""
    RAISED: Final = 3
    """From a worker: an `Outcome` that failed."""
    BACK: Final = 4
    """From a worker: it was not begun; give it to somebody else."""
    PACE: Final = 5
    """From a worker: in place of a number, the nanoseconds that each of the last calls took."""
    LEAVING: Final = 6
    """From a worker: it ends, and begins nothing more."""
    UNFIT: Final = 7
    """From a worker: its initializer failed, as this `Outcome` tells."""
    MORE: Final = 9
    """To a worker: from now on it may be given calls behind the one that runs, and has to look after them."""
    PROGRESS: Final = 10
    """From a worker: how far the call has come."""
    PIECE: Final = 8
    """Either way: a piece of what is too large for one event; what comes behind it says of what kind it is."""


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[Entry]).decode


class Outgoing:
    """Makes events of entries. ``send`` is called with the arguments of each, in order."""

    def __init__(self, credential: Credential, direction: bytes, send: Callable[[int, bytes, bytes], None]) -> None:
        self._credential, self._direction, self._send = credential, direction, send
        self._serial = 0

    def send(self, entries: Iterable[Entry]) -> None:
        """Send them all, in as few events as they fit in."""
        group: list[Entry] = []
        size = 0
        for entry in entries:
            length = len(entry[2])
            if length > CHUNK:
                self._post(group)
                group, size = [], 0
                for piece in _pieces(entry):
                    self._post([piece])
                continue
            if size + length > CHUNK:
                self._post(group)
                group, size = [], 0
            group.append(entry)
            size += length
        self._post(group)

    def _post(self, group: list[Entry]) -> None:
        if group:
            serial = self._serial + 1
            blob = _encode(group)
            signature = self._credential.sign(_label(self._direction, serial) + blob)
            self._serial = serial  # Not before: where there is no memory for all this, nothing is missing after it.
            self._send(serial, blob, signature)


class Incoming:
    """Makes entries of events, and believes only those that the other end has signed, each once and in order."""

    def __init__(self, credential: Credential, direction: bytes) -> None:
        self._credential, self._direction = credential, direction
        self._serial = 0
        self._pieces: dict[int, list[bytes]] = {}

    def take(self, serial: int, blob: bytes, signature: bytes) -> list[Entry]:
        """Return the entries of one event. Raises ValueError, TypeError for what the other end did not send now."""
        if serial != self._serial + 1 or not self._credential.check(_label(self._direction, serial) + blob, signature):
            raise ValueError("not signed by the other end, or said before")
        self._serial = serial
        entries = _decode(blob)
        if self._pieces or entries[0][1] == Kind.PIECE:
            return list(self._joined(entries))
        return entries

    def _joined(self, entries: list[Entry]) -> Iterator[Entry]:
        for number, kind, data in entries:
            if kind == Kind.PIECE:
                self._pieces.setdefault(number, []).append(data)
            elif number in self._pieces:
                yield number, kind, b"".join((*self._pieces.pop(number), data))
            else:
                yield number, kind, data


def _pieces(entry: Entry) -> Iterator[Entry]:
    number, kind, data = entry
    view = memoryview(data)
    for at in range(0, len(data), CHUNK):
        last = at + CHUNK >= len(data)
        yield number, kind if last else Kind.PIECE, bytes(view[at : at + CHUNK])


def _label(direction: bytes, serial: int) -> bytes:
    return direction + serial.to_bytes(8, "big")


SIZE: Final = 64 * 1024
"""Bytes of a page: some thousand small results, which are kept until the manager has confirmed them."""

_NUMBER: Final = struct.Struct("<Q")
_RECORD: Final = struct.Struct("<QBI")
_USED: Final = 8  # where the number of bytes that hold records is written
_FIRST: Final = 16  # where the first record begins


class CrashRecord:
    """A mapped file. The worker writes; the manager reads once the worker has ended."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Map a file, whose descriptor is closed then. Raises OSError."""
        self.path = path
        try:
            os.ftruncate(descriptor, SIZE)
            self._memory = mmap.mmap(descriptor, SIZE)
        finally:
            os.close(descriptor)
        self._used = _FIRST

    @classmethod
    def made(cls) -> Self:
        """Make one in a file that only this user can read. Raises OSError."""
        descriptor, path = tempfile.mkstemp(prefix="doorman-page-")
        return cls(Path(path), descriptor)

    @classmethod
    def shared(cls, path: Path) -> Self | None:
        """Map a page that the manager has made; None where its files are not to be seen."""
        try:
            return cls(path, os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except OSError:
            return None

    def begin(self, number: int) -> None:
        """Write down which call begins."""
        _NUMBER.pack_into(self._memory, 0, number)

    def keep(self, number: int, kind: int, data: bytes) -> bool:
        """Write down a result; False if there is no room."""
        start = self._used + _RECORD.size
        end = start + len(data)
        if end > SIZE:
            return False
        _RECORD.pack_into(self._memory, self._used, number, kind, len(data))
        self._memory[start:end] = data
        # Last: what is half written when the process dies does not count.
        _NUMBER.pack_into(self._memory, _USED, end)
        self._used = end
        return True

    def clear(self) -> None:
        """Forget the results: the manager has them."""
        _NUMBER.pack_into(self._memory, _USED, _FIRST)
        self._used = _FIRST

    def read(self) -> tuple[int, list[Entry]]:
        """Return the number of the call that began last, 0 for none, and the results that are kept."""
        (begun,) = _NUMBER.unpack_from(self._memory, 0)
        (end,) = _NUMBER.unpack_from(self._memory, _USED)
        entries: list[Entry] = []
        at = _FIRST
        while at + _RECORD.size <= min(end, SIZE):
            number, kind, size = _RECORD.unpack_from(self._memory, at)
            at += _RECORD.size
            entries.append((number, kind, self._memory[at : at + size]))
            at += size
        return begun, entries

    def hide(self) -> None:
        """Remove the file: whoever has it mapped keeps it. May be called twice."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Give the memory back. May be called twice."""
        self.hide()
        self._memory.close()
