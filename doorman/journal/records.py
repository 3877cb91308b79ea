"""Types and encoding of journal records, and the state of a task after its records. No file access."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

import msgspec

from doorman.identity import Identity
from doorman.states import State

VERSION: Final = 1
"""Version of the record format. A journal with a later version is refused."""
_CHECK: Final = 9
"""Bytes in front of a record: its checksum in hexadecimal digits, and a space."""


class _Record(msgspec.Struct, gc=False, tag_field="is", tag=str.lower):
    """Base of the records. A record is one line of JSON, so that common tools can search a journal."""


class JournalOpened(_Record, tag="opened"):
    """A manager has opened the journal."""

    version: int
    pid: int
    location: bytes | None = None
    """Pickled private location of the manager; None if the user chose the location."""


class Added(_Record):
    """A task was added."""

    task: str
    name: str
    command: tuple[str, ...]
    """For readers of the file. The command to run is in the policy."""
    policy: bytes
    """A pickled dict of the options of the task, each pickled by itself."""
    call: bytes
    """The pickled callable with its arguments; empty for a command."""
    after: tuple[str, ...] = ()
    """Ids of the tasks that this task depends on. Their records stay until it has ended."""


class Started(_Record):
    """A process is about to be launched. The secret is not encrypted: a reader of the file can sign as the attempt."""

    task: str
    attempt: str
    number: int
    secret: bytes
    detach: bool
    boot: str
    """The kernel's boot id: inodes and monotonic times are valid within one boot."""


class ProcessLaunched(_Record, tag="launched"):
    """A process exists: the task's own, or its wrapper."""

    task: str
    pid: int
    inode: int | None


class ProcessProven(_Record, tag="proven"):
    """The process has proven its identity. The reply that starts the user code is sent after this record."""

    task: str
    identity: Identity
    at: float
    """Monotonic time, which all processes of one boot share."""


class Stopped(_Record):
    """The process is about to be stopped."""

    task: str
    ends_as: State


class OutcomeReceived(_Record, tag="outcome"):
    """The process has reported its outcome."""

    task: str
    outcome: bytes


class Requeued(_Record, tag="requeued"):
    """The attempt has ended, and the task waits again."""

    task: str
    number: int
    """Number of attempts that count so far."""


class Ended(_Record):
    """The task has ended. Its value or error is pickled here, unless `OutcomeReceived` has it."""

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
    """The state of one task after all its records."""

    added: Added
    number: int = 0
    """Number of attempts that count."""
    started: Started | None = None
    """The current attempt; None if the task waits or has ended."""
    launched: ProcessLaunched | None = None
    proven: ProcessProven | None = None
    stopped: Stopped | None = None
    outcome: OutcomeReceived | None = None
    ended: Ended | None = None

    def apply(self, record: Record) -> None:
        """Update the state by the next record of the task."""
        if isinstance(record, Started | Requeued):
            self.launched = self.proven = self.stopped = self.outcome = None
            self.started = record if isinstance(record, Started) else None
            self.number = record.number
        elif isinstance(record, ProcessLaunched):
            self.launched = record
        elif isinstance(record, ProcessProven):
            self.proven = record
        elif isinstance(record, Stopped):
            self.stopped = record
        elif isinstance(record, OutcomeReceived):
            self.outcome = record
        elif isinstance(record, Ended):
            self.ended, self.started, self.launched, self.stopped = record, None, None, None
            self.added = msgspec.structs.replace(self.added, call=b"")  # No longer needed.

    def records(self) -> Iterator[Record]:
        """Yield the fewest records that restore this state."""
        yield self.added
        if self.started is None and self.number:
            yield Requeued(self.added.task, self.number)
        for record in (self.started, self.launched, self.proven, self.stopped, self.outcome, self.ended):
            if record is not None:
                yield record


def encoded(record: Record) -> bytes:
    """Return the line of a record: checksum, space, JSON."""
    data = _encode(record)
    return b"%08x %s\n" % (zlib.crc32(data), data)


def decoded(line: bytes) -> Record | None:
    """Return the record of a line; None if the line is truncated, damaged or no record."""
    data = line[_CHECK:-1]
    if not line.endswith(b"\n") or line[: _CHECK - 1] != b"%08x" % zlib.crc32(data):
        return None
    try:
        return _decode(data)
    except msgspec.MsgspecError:
        return None


def folded(records: Iterable[Record]) -> dict[str, Entry]:
    """Return the state of each task after all records, by id, in the order in which the tasks were added."""
    entries: dict[str, Entry] = {}
    for record in records:
        if isinstance(record, Added):
            entries[record.task] = Entry(record)
        elif not isinstance(record, JournalOpened) and record.task in entries:
            entries[record.task].apply(record)
    return entries
