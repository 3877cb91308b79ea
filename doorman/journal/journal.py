"""Journal: the file that says what a manager wanted and what became of it, for the one that comes after its death."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, Self
from weakref import WeakSet

from doorman._worker.outcome import Outcome
from doorman.errors import JournalError, JournalInUse, TaskCancelled, TaskExpired, TaskFailed
from doorman.journal.records import VERSION, Entry, JournalOpened, Record, decoded, encoded, folded
from doorman.states import State
from remit.errors import LocationInUse, TransportError
from remit.transport import FileLock, register_after_fork

__all__ = ["Finished", "Journal", "finished_of"]

KEEP: Final = 10_000
"""Tasks that have ended and are remembered; beyond that the oldest are forgotten."""
ROTATE: Final = 16 << 20
"""Bytes that a journal may grow by, and at least double, before it is written anew."""
SURVIVES: Final = ("manager", "machine")
_log = logging.getLogger(__name__)
_open: Final[WeakSet[Journal]] = WeakSet()
"""A fork must not keep the lock of a manager that has died."""


class Finished(NamedTuple):
    """What a journal says of a task that has ended."""

    id: str
    name: str
    command: tuple[str, ...]
    state: State
    attempt: int
    """Which try was the last."""
    exit_code: int | None
    signal: int | None
    outcome: Outcome | None
    """What it told; None if it ended without a word."""
    value: bytes | None = None
    """Its value where it told none itself, pickled."""
    error: bytes | None = None
    """What it ended with where it told nothing itself, pickled."""

    def result(self) -> Any:
        """Return its value, or raise what ``Task.result`` raised. Unpickles: read only journals that you trust."""
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
            return None, kind(f"task {self.name!r} is {self.state}, says the journal")
        try:
            value = None if self.value is None else pickle.loads(self.value)
            return value, None if self.error is None else pickle.loads(self.error)
        except Exception as error:  # noqa: BLE001 - unpickling runs the user's code, which may raise anything
            return None, JournalError(f"the journal has an end of task {self.name!r} that cannot be read here: {error}")


class Journal:
    """An append-only file of what happens to tasks. One manager at a time writes to it; anybody allowed may read it.

    survives -- ``"manager"``: a record is given to the kernel before the manager goes on, and is there whatever
        becomes of the manager; ``"machine"``: it is on the disk (fdatasync) before the manager goes on
    keep -- how many tasks that have ended are remembered

    A torn last record is forgotten, damaged ones are passed over and counted. The file holds the secrets of attempts
    and pickled calls: only its owner can read it, and a file that others could write to could run code here. Raises
    JournalInUse while another manager holds it, JournalError if it cannot be read or written.
    """

    def __init__(self, path: str | os.PathLike[str], *, survives: str = "manager", keep: int = KEEP) -> None:
        if survives not in SURVIVES:
            raise ValueError(f"survives is one of {', '.join(SURVIVES)}, not {survives!r}")
        self.path = Path(os.path.realpath(path))  # A link to it stays a link when it is written anew.
        self.folder = self.path.with_name(self.path.name + ".d")
        """Where detached processes leave their last words while there is no manager."""
        self.damaged = 0
        """Records that could not be read when it was opened."""
        self.location: bytes | None = None
        """The private location of the manager before, pickled."""
        self._synced = survives == "machine"
        self._keep = keep
        self._owner = os.getpid()
        self._descriptor = -1
        self._broken: JournalError | None = None
        self._size = self._rotate_at = 0
        self._claim = _claimed(self.path)
        _open.add(self)
        try:
            self._entries: dict[str, Entry] = self._renew()
        except BaseException:
            self.close()
            raise

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Iterator[Finished]:
        """Yield what has ended, in the order in which it was added; also while a manager writes. Raises JournalError.

        What has not ended is not told of: it waits, or is under way.
        """
        for entry in folded(_records(Path(path))[0]).values():
            finished = finished_of(entry)
            if finished is not None:
                yield finished

    def entries(self) -> tuple[Entry, ...]:
        """Return what it said of each task when it was opened; the second time nothing."""
        entries, self._entries = self._entries, {}
        return tuple(entries.values())

    def append(self, *records: Record) -> None:
        """Write records, whole or not at all. Raises JournalError, from then on each time."""
        self.check()
        self._write(b"".join(map(encoded, records)))
        if self._size >= self._rotate_at:
            self._renew()

    def check(self) -> None:
        """Raise JournalError if something could not be written, or this journal is closed, or came with a fork."""
        if self._broken is not None:
            raise self._broken
        if self._descriptor < 0 or self._owner != os.getpid():
            raise JournalError(f"the journal {self.path} is closed, or belongs to the parent process: open another one")

    def opened(self, location: bytes | None) -> None:
        """Say that a manager begins. ``location`` is where it will be found again if its user does not say."""
        self.location = location
        self.append(JournalOpened(VERSION, os.getpid(), location))

    def make_folder(self) -> Path:
        """Return the folder, made if need be. Raises JournalError."""
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise JournalError(f"cannot make {self.folder} for detached tasks: {error.strerror}") from error
        return self.folder

    def close(self) -> None:
        """Let go of the file. May be called twice."""
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

    def _write(self, data: bytes) -> None:
        try:
            written = os.write(self._descriptor, data)
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
            if self._synced:
                os.fdatasync(self._descriptor)
        except OSError as error:
            with contextlib.suppress(OSError):  # What was written in part is read as torn in any case.
                os.ftruncate(self._descriptor, self._size)
            self._broken = JournalError(f"cannot write to {self.path}: {error.strerror}; the manager has to end")
            raise self._broken from error
        self._size += len(data)

    def _renew(self) -> dict[str, Entry]:
        """Write anew only what still matters, in place of all that was ever written; return that."""
        try:
            entries = self._survivors()
            opened = JournalOpened(VERSION, os.getpid(), self.location)
            lines = [encoded(opened), *(encoded(record) for entry in entries.values() for record in entry.records())]
            fresh = self.path.with_name(self.path.name + ".new")
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
            before, self._descriptor = self._descriptor, descriptor
            if before >= 0:
                os.close(before)
            os.fchmod(descriptor, 0o600)
            self._size = 0
            self._write(b"".join(lines))
            os.fsync(descriptor)
            fresh.replace(self.path)
            _sync_folder(self.path.parent)
        except OSError as error:
            # What is written from now on might be in a file that is never read.
            self._broken = JournalError(f"cannot write {self.path} anew: {error.strerror}; the manager has to end")
            raise self._broken from error
        self._rotate_at = 2 * self._size + ROTATE
        return entries

    def _survivors(self) -> dict[str, Entry]:
        records, damaged = _records(self.path) if self.path.exists() else ([], 0)
        if damaged:
            self._keep_evidence(damaged)
        for record in records:
            if isinstance(record, JournalOpened):
                self.location = record.location
        entries = folded(records)
        awaited = {first for entry in entries.values() if not entry.ended for first in entry.added.after}
        ended = [task for task, entry in entries.items() if entry.ended and task not in awaited]
        for task in ended[: max(0, len(ended) - self._keep)]:
            del entries[task]
        return entries

    def _keep_evidence(self, damaged: int) -> None:
        self.damaged += damaged
        evidence = self.path.with_name(self.path.name + ".damaged")
        evidence.unlink(missing_ok=True)
        os.link(self.path, evidence)
        _log.error("%s: %d damaged records were passed over; the file as it was is %s", self.path, damaged, evidence)


def _after_fork() -> None:
    for journal in tuple(_open):
        journal.close()


register_after_fork(_after_fork)


def finished_of(entry: Entry) -> Finished | None:
    """Return what is known of a task that has ended; None if it has not."""
    ended = entry.ended
    if ended is None:
        return None
    outcome = None if entry.told is None else Outcome.decode(entry.told.outcome)
    added = entry.added
    how = (ended.state, entry.number, ended.exit_code, ended.signal)
    return Finished(added.task, added.name, added.command, *how, outcome, ended.value, ended.error)


def _records(path: Path) -> tuple[list[Record], int]:
    """Return the records of a file, and how many lines are none, not counting a torn last one. Raises JournalError."""
    records: list[Record] = []
    bad: list[int] = []
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                record = decoded(line)
                if record is None:
                    bad.append(number)
                else:
                    records.append(record)
    except OSError as error:
        raise JournalError(f"cannot read the journal {path}: {error.strerror}") from error
    _check_language(path, records, bad)
    torn = bool(bad) and bad[-1] == number
    return records, len(bad) - torn


def _check_language(path: Path, records: Iterable[Record], bad: list[int]) -> None:
    """Refuse what is no journal at all, lest a file of somebody else's is written over, and one of a later version."""
    first = next(iter(records), None)
    if first is None and bad:  # A journal is made whole: its first record is never torn.
        raise JournalError(f"{path} is not a journal: choose another path")
    if isinstance(first, JournalOpened) and first.version > VERSION:
        raise JournalError(f"{path} is of version {first.version}, this Doorman reads up to {VERSION}: use a newer one")


def _claimed(path: Path) -> FileLock:
    try:
        return FileLock(str(path))
    except LocationInUse as error:
        raise JournalInUse(f"another manager writes to {path}: end it, or choose another journal") from error
    except TransportError as error:
        raise JournalError(f"cannot open the journal {path}: {error}") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
