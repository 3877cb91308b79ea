"""Records: what a journal says, line by line, and what its lines together say of each task. Touches no file."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

import msgspec

from doorman.identity import Identity
from doorman.states import State

__all__ = [
    "Added",
    "Ended",
    "Entry",
    "JournalOpened",
    "OutcomeReceived",
    "ProcessLaunched",
    "ProcessProven",
    "Record",
    "Requeued",
    "Started",
    "Stopped",
    "decoded",
    "encoded",
    "folded",
]

VERSION: Final = 1
"""Of the journal's language. A journal of a later one is not read."""
_CHECK: Final = 9
"""Bytes in front of a record: its checksum in hexadecimal digits, and a space."""


class _Record(msgspec.Struct, gc=False, tag_field="is", tag=str.lower):
    """A record: one line, in JSON, so that a journal can be searched and read."""


class JournalOpened(_Record, tag="opened"):
    """A manager began to write."""

    version: int
    pid: int
    location: bytes | None = None
    """The private location that the manager was given, pickled; None where its user said where."""


class Added(_Record):
    """A task is wanted."""

    task: str
    name: str
    command: tuple[str, ...]
    """For readers; what is run is in the policy."""
    policy: bytes
    """The pickled policy, part by part."""
    call: bytes
    """The pickled callable with its arguments; empty for a command."""
    after: tuple[str, ...] = ()
    """The tasks that have to be done before it, which are not forgotten while it has not ended."""


class Started(_Record):
    """A process is about to be asked for. The secret is in the clear: whoever reads it can speak as this attempt."""

    task: str
    attempt: str
    number: int
    secret: bytes
    detach: bool
    boot: str
    """The kernel's name for the boot, within which inodes and moments mean something."""


class ProcessLaunched(_Record, tag="launched"):
    """A process is there; the task's, or a wrapper's."""

    task: str
    pid: int
    inode: int | None


class ProcessProven(_Record, tag="proven"):
    """The process has proven itself, and is about to be told to go."""

    task: str
    identity: Identity
    at: float
    """Seconds on the monotonic clock, which is the same for all processes of one boot."""


class Stopped(_Record):
    """The process is about to be told to end."""

    task: str
    ends_as: State


class OutcomeReceived(_Record, tag="outcome"):
    """The process has told its outcome."""

    task: str
    outcome: bytes


class Requeued(_Record, tag="requeued"):
    """The attempt is over, and the task waits again."""

    task: str
    number: int
    """How many attempts count so far."""


class Ended(_Record):
    """The task has ended. Its value or error is in the outcome that was told, or here, pickled."""

    task: str
    state: State
    exit_code: int | None = None
    signal: int | None = None
    max_rss: int | None = None
    value: bytes | None = None
    error: bytes | None = None


Record: TypeAlias = (
    JournalOpened | Added | Started | ProcessLaunched | ProcessProven | Stopped | OutcomeReceived | Requeued | Ended
)
_encode: Final = msgspec.json.Encoder().encode
_decode: Final[Callable[[bytes], Record]] = msgspec.json.Decoder(Record).decode


@dataclass(slots=True)
class Entry:
    """All that a journal says of one task."""

    added: Added
    number: int = 0
    """Attempts that count so far."""
    started: Started | None = None
    """The attempt that was under way when the journal was last written to; None if it waits or has ended."""
    launched: ProcessLaunched | None = None
    proven: ProcessProven | None = None
    stopped: Stopped | None = None
    told: OutcomeReceived | None = None
    ended: Ended | None = None

    def take(self, record: Record) -> None:
        """Take in what was written next about this task."""
        if isinstance(record, Started | Requeued):
            self.launched = self.proven = self.stopped = self.told = None
            self.started = record if isinstance(record, Started) else None
            self.number = record.number
        elif isinstance(record, ProcessLaunched):
            self.launched = record
        elif isinstance(record, ProcessProven):
            self.proven = record
        elif isinstance(record, Stopped):
            self.stopped = record
        elif isinstance(record, OutcomeReceived):
            self.told = record
        elif isinstance(record, Ended):
            self.ended, self.started, self.launched, self.stopped = record, None, None, None
            self.added = msgspec.structs.replace(self.added, call=b"")  # It will not be called any more.

    def records(self) -> Iterator[Record]:
        """Yield the fewest records that say the same."""
        yield self.added
        if self.started is None and self.number:
            yield Requeued(self.added.task, self.number)
        for record in (self.started, self.launched, self.proven, self.stopped, self.told, self.ended):
            if record is not None:
                yield record


def encoded(record: Record) -> bytes:
    """Return a record as a line with its checksum."""
    data = _encode(record)
    return b"%08x %s\n" % (zlib.crc32(data), data)


def decoded(line: bytes) -> Record | None:
    """Return the record of a line; None for what is torn, damaged or none at all."""
    data = line[_CHECK:-1]
    if not line.endswith(b"\n") or line[: _CHECK - 1] != b"%08x" % zlib.crc32(data):
        return None
    try:
        return _decode(data)
    except msgspec.MsgspecError:
        return None


def folded(records: Iterable[Record]) -> dict[str, Entry]:
    """Return what the records together say of each task, in the order in which the tasks were added."""
    entries: dict[str, Entry] = {}
    for record in records:
        if isinstance(record, Added):
            entries[record.task] = Entry(record)
        elif not isinstance(record, JournalOpened) and record.task in entries:
            entries[record.task].take(record)
    return entries
