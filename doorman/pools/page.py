"""Page: memory that a worker shares with its manager, so that its death costs the call that it was running, no other.

A worker writes down which call it begins, and each result before the next call begins. What dies with the process on
its way, in a queue or on a transport's thread, is still on the page.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from pathlib import Path
from typing import Final, Self

from doorman.pools.parcel import Entry

__all__ = ["Page"]

SIZE: Final = 64 * 1024
"""Bytes of a page: some thousand small results, which are kept until the manager has confirmed them."""

_NUMBER: Final = struct.Struct("<Q")
_RECORD: Final = struct.Struct("<QBI")
_USED: Final = 8  # where the number of bytes that hold records is written
_FIRST: Final = 16  # where the first record begins


class Page:
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
