"""Kinds of messages between a crew and its workers, and the crash record in shared memory.

A worker records the start of each call, and each result before the next call. If the process dies, the manager reads
from the record the results that were not sent yet, so that only the running call is lost.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from pathlib import Path
from typing import Final, Self

from doorman._worker.signed_channel import Entry


class Kind:
    """Kinds of entries. Plain integers, because they are compared for each call.

    A worker answers a call with one entry of a kind up to RETURNED_UNSTARTED.
    """

    CALL: Final = 0
    """To a worker: run this call."""
    RETURNED: Final = 1
    """From a worker: the call's pickled result."""
    RAISED: Final = 2
    """From a worker: the encoded `TaskOutcome` of a call that failed."""
    RETURNED_UNSTARTED: Final = 3
    """From a worker: the call was not started; another worker may run it."""
    CALL_DURATION: Final = 4
    """From a worker: the number is the mean duration of its last calls in nanoseconds."""
    PROGRESS: Final = 5
    """From a worker: progress of the running call."""
    PREFETCH: Final = 6
    """To a worker: start the watch thread, because further calls will be queued behind the running one."""
    LEAVE: Final = 7
    """To a worker: start no more calls and exit."""
    LEAVING: Final = 8
    """From a worker: it exits and starts no more calls."""
    INIT_FAILED: Final = 9
    """From a worker: the encoded `TaskOutcome` of its initializer, which failed."""


CRASH_RECORD_SIZE: Final = 64 * 1024
"""Bytes of a crash record: some thousand small results, which stay until the record is full."""

_NUMBER: Final = struct.Struct("<Q")
_RECORD: Final = struct.Struct("<QBI")
_USED: Final = 8  # position of the end of the results
_FIRST: Final = 16  # position of the first result


class CrashRecord:
    """A file mapped by a worker, which writes it, and by the manager, which reads it after the worker's end.

    Layout: number of the started call (8 bytes), end of the results (8), then for each result its call's number (8),
    kind (1), length (4) and data.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        """Map a file and close its descriptor. Raises OSError."""
        self.path = path
        try:
            os.ftruncate(descriptor, CRASH_RECORD_SIZE)
            self._memory = mmap.mmap(descriptor, CRASH_RECORD_SIZE)
        finally:
            os.close(descriptor)
        self._used = _FIRST

    @classmethod
    def create(cls) -> Self:
        """Create a record in a file that only this user can read. Raises OSError."""
        descriptor, path = tempfile.mkstemp(prefix="doorman-crash-record-")
        return cls(Path(path), descriptor)

    @classmethod
    def open(cls, path: Path) -> Self | None:
        """Map the record that the manager has created; None if the file is not visible here, as in a container."""
        try:
            return cls(path, os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except OSError:
            return None

    def record_start(self, number: int) -> None:
        """Record the start of a call."""
        _NUMBER.pack_into(self._memory, 0, number)

    def record_result(self, number: int, kind: int, data: bytes) -> bool:
        """Record a result; return False if the record is full."""
        start = self._used + _RECORD.size
        end = start + len(data)
        if end > CRASH_RECORD_SIZE:
            return False
        _RECORD.pack_into(self._memory, self._used, number, kind, len(data))
        self._memory[start:end] = data
        # Last: if the process dies before this line, the partial result is not counted.
        _NUMBER.pack_into(self._memory, _USED, end)
        self._used = end
        return True

    def clear_results(self) -> None:
        """Remove the results, after the manager has acknowledged them."""
        _NUMBER.pack_into(self._memory, _USED, _FIRST)
        self._used = _FIRST

    def read(self) -> tuple[int, list[Entry]]:
        """Return the number of the last call that was started (0: none) and the recorded results."""
        (begun,) = _NUMBER.unpack_from(self._memory, 0)
        (end,) = _NUMBER.unpack_from(self._memory, _USED)
        entries: list[Entry] = []
        at = _FIRST
        # Check the end: the user's code runs in the process that writes it, and may have overwritten any memory.
        while at + _RECORD.size <= min(end, CRASH_RECORD_SIZE):
            number, kind, size = _RECORD.unpack_from(self._memory, at)
            at += _RECORD.size
            entries.append((number, kind, self._memory[at : at + size]))
            at += size
        return begun, entries

    def unlink(self) -> None:
        """Remove the file; existing mappings stay valid. May be called twice."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the file and the mapping. May be called twice."""
        self.unlink()
        self._memory.close()
