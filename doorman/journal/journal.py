"""The journal file: records of tasks and attempts that survive the manager which wrote them."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from doorman._worker.outcome import TaskOutcome
from doorman.errors import JournalError, JournalInUse, TaskCancelled, TaskExpired, TaskFailed
from doorman.journal.records import VERSION, Entry, JournalOpened, Record, decoded, encoded, folded
from doorman.process import Descriptors
from doorman.states import State
from remit.errors import LocationInUse, TransportError
from remit.transport import FileLock, register_after_fork

KEEP: Final = 10_000
"""Number of ended tasks that stay in the file; older ones are removed when it is rewritten."""
ROTATE: Final = 16 << 20
"""The file is rewritten once it has doubled and grown by this many bytes."""
SURVIVES: Final = ("manager", "machine")
_log = logging.getLogger(__name__)


class Finished(NamedTuple):
    """A task that has ended, read from a journal."""

    id: str
    name: str
    command: tuple[str, ...]
    state: State
    attempt: int
    """Number of the last attempt."""
    exit_code: int | None
    signal: int | None
    outcome: TaskOutcome | None
    """The outcome that its process reported; None if it reported none."""
    value: bytes | None = None
    """Pickled value, if the process did not report it."""
    error: bytes | None = None
    """Pickled error, if the process did not report it."""

    def result(self) -> Any:
        """Return the value or raise the error of the task. Unpickles: read only journals that you trust."""
        value, error = self.opened()
        if error is not None:
            raise error
        return value

    def opened(self) -> tuple[Any, BaseException | None]:
        """Return the value and None, or None and the error."""
        if self.error is None and self.value is None and self.outcome is not None:
            return self.outcome.unpickle()
        if self.error is None and self.state is not State.DONE:
            kind = {State.CANCELLED: TaskCancelled, State.EXPIRED: TaskExpired}.get(self.state, TaskFailed)
            return None, kind(f"task {self.name!r} is {self.state} according to the journal")
        try:
            value = None if self.value is None else pickle.loads(self.value)
            return value, None if self.error is None else pickle.loads(self.error)
        except Exception as error:  # noqa: BLE001 - unpickling runs the user's code, which may raise anything
            return None, JournalError(f"the result of task {self.name!r} cannot be unpickled here: {error}")


class Journal:
    """An append-only file of records about tasks. One manager at a time writes to it; other processes may read it.

    survives -- ``"manager"``: `append` returns once the kernel has the records, which survive the manager's death;
        ``"machine"``: `append` returns once the records are on the disk (fdatasync)
    keep -- number of ended tasks that stay in the file

    A truncated last record is dropped; damaged records are skipped and counted. The file has mode 0600: it holds
    secrets of attempts and pickled calls, and records written by another user could run code here.
    Raises JournalInUse while another manager holds the file, JournalError if it cannot be read or written.
    """

    def __init__(self, path: str | os.PathLike[str], *, survives: str = "manager", keep: int = KEEP) -> None:
        if survives not in SURVIVES:
            raise ValueError(f"survives is one of {', '.join(SURVIVES)}, not {survives!r}")
        self.path = Path(os.path.realpath(path))  # The rewrite replaces the file; a symbolic link to it must stay.
        self.folder = self.path.with_name(self.path.name + ".d")
        """Folder in which detached processes store their outcomes while no manager runs."""
        self.damaged = 0
        """Number of unreadable records that the file had when it was opened."""
        self.location: bytes | None = None
        """Pickled private location of the previous manager."""
        self._synced = survives == "machine"
        self._keep = keep
        self._owner = os.getpid()
        self._descriptor = -1
        self._broken: JournalError | None = None
        self._size = self._rotate_at = 0
        self._writing = self._renewing = False  # Also true after an interrupt within.
        try:
            self._claim = FileLock(str(self.path))
        except LocationInUse as error:
            raise JournalInUse(f"another manager writes to {self.path}: end it, or choose another journal") from error
        except TransportError as error:
            raise JournalError(f"cannot open the journal {self.path}: {error}") from error
        # A forked child would otherwise hold the file and its lock after the manager has died.
        register_after_fork(self.close)
        try:
            self._entries: dict[str, Entry] = self._renew()
        except BaseException:
            self.close()
            raise

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Iterator[Finished]:
        """Yield the ended tasks in the order in which they were added, also while a manager writes.

        Waiting and running tasks are left out. Raises JournalError.
        """
        for entry in folded(_records(Path(path))[0]).values():
            finished = finished_of(entry)
            if finished is not None:
                yield finished

    def entries(self) -> tuple[Entry, ...]:
        """Return the tasks that the file had when it was opened. Later calls return an empty tuple."""
        entries, self._entries = self._entries, {}
        return tuple(entries.values())

    def append(self, *records: Record) -> None:
        """Write records, all or none. After a failure this and each later call raise JournalError."""
        self.check()
        if self._renewing:  # It was interrupted: the descriptor may be that of the replaced file.
            self._renew()
        self._write(b"".join(map(encoded, records)))
        if self._size >= self._rotate_at:
            self._renew()

    def check(self) -> None:
        """Raise JournalError if a write has failed, the journal is closed, or this process is a fork of its owner."""
        if self._broken is not None:
            raise self._broken
        if self._descriptor < 0 or self._owner != os.getpid():
            raise JournalError(f"the journal {self.path} is closed, or belongs to the parent process: open another one")

    def opened(self, location: bytes | None) -> None:
        """Record that a manager with this pickled private location uses the journal. Raises JournalError."""
        self.location = location
        self.append(self._first_record())

    def make_folder(self) -> Path:
        """Return the folder, and create it if it is missing. Raises JournalError."""
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise JournalError(f"cannot create {self.folder} for detached tasks: {error.strerror}") from error
        return self.folder

    def close(self) -> None:
        """Close the file and release its lock. May be called twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
        if self._owner == os.getpid():
            self._claim.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Journal {self.path}{' closed' if self._descriptor < 0 else ''}>"

    def _first_record(self) -> JournalOpened:
        return JournalOpened(VERSION, os.getpid(), self.location)

    def _write(self, data: bytes) -> None:
        try:
            if self._writing:  # An interrupt may have left a part of a record, or one that the caller repeats.
                os.ftruncate(self._descriptor, self._size)
            self._writing = True
            _write_all(self._descriptor, data)
            if self._synced:
                os.fdatasync(self._descriptor)
        except OSError as error:
            with contextlib.suppress(OSError):  # If this fails too, a partial record is read as truncated.
                os.ftruncate(self._descriptor, self._size)
            self._broken = JournalError(f"cannot write to {self.path}: {error.strerror}; close the manager")
            raise self._broken from error
        self._size += len(data)
        self._writing = False

    def _renew(self) -> dict[str, Entry]:
        """Replace the file with one that has only the records still needed; return their tasks."""
        self._renewing = True
        try:
            entries = self._survivors()
            records = [self._first_record(), *(record for entry in entries.values() for record in entry.records())]
            fresh = self.path.with_name(self.path.name + ".new")
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
            data = b"".join(map(encoded, records))
            try:
                os.fchmod(descriptor, 0o600)
                _write_all(descriptor, data)
                os.fsync(descriptor)
                fresh.replace(self.path)
            except BaseException:
                os.close(descriptor)
                raise
            before, self._descriptor, self._size, self._writing = self._descriptor, descriptor, len(data), False
            if before >= 0:
                os.close(before)
            folder = Descriptors([os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)])
            os.fsync(folder[0])
        except OSError as error:
            # Refuse later records: they might go to a file that is never read.
            self._broken = JournalError(f"cannot rewrite {self.path}: {error.strerror}; close the manager")
            raise self._broken from error
        self._rotate_at = 2 * self._size + ROTATE
        self._renewing = False
        return entries

    def _survivors(self) -> dict[str, Entry]:
        records, damaged = _records(self.path) if self.path.exists() else ([], 0)
        if damaged:
            self.damaged += damaged
            original = self.path.with_name(self.path.name + ".damaged")
            original.unlink(missing_ok=True)
            os.link(self.path, original)
            _log.error("%s: %d damaged records were skipped; the original file is %s", self.path, damaged, original)
        for record in records:
            if isinstance(record, JournalOpened):
                self.location = record.location
        entries = folded(records)
        awaited = {first for entry in entries.values() if not entry.ended for first in entry.added.after}
        ended = [task for task, entry in entries.items() if entry.ended and task not in awaited]
        for task in ended[: max(0, len(ended) - self._keep)]:
            del entries[task]
        return entries


def _write_all(descriptor: int, data: bytes) -> None:
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, data[written:])


def finished_of(entry: Entry) -> Finished | None:
    """Return the ended task of an entry; None if the task has not ended."""
    ended = entry.ended
    if ended is None:
        return None
    outcome = None if entry.outcome is None else TaskOutcome.decode(entry.outcome.outcome)
    added = entry.added
    how = (ended.state, entry.number, ended.exit_code, ended.signal)
    return Finished(added.task, added.name, added.command, *how, outcome, ended.value, ended.error)


def _records(path: Path) -> tuple[list[Record], int]:
    """Return the records of a file and the number of damaged lines. A truncated last line is not counted.

    Raises JournalError, also for a file of another kind, which must not be overwritten, and for a later version.
    """
    try:
        with path.open("rb") as file:
            lines = list(map(decoded, file))
    except OSError as error:
        raise JournalError(f"cannot read the journal {path}: {error.strerror}") from error
    records = [record for record in lines if record is not None]
    if lines and not records:  # A rewrite replaces the whole file, so the first record is never truncated.
        raise JournalError(f"{path} is not a journal: choose another path")
    first = records[0] if records else None
    if isinstance(first, JournalOpened) and first.version > VERSION:
        raise JournalError(f"{path} has version {first.version}, this Doorman reads up to {VERSION}: use a newer one")
    truncated = bool(lines) and lines[-1] is None
    return records, len(lines) - len(records) - truncated
