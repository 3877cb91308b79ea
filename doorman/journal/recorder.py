"""Recorder that writes each change of a task into the journal before the change takes effect."""

from __future__ import annotations

import inspect
import io
import logging
import os
import pickle
from collections.abc import Container, Mapping
from typing import Any, Final

import cloudpickle

from doorman._scheduler import lifecycle
from doorman._scheduler.attempt import Attempt
from doorman._scheduler.lifecycle import JournalEntry
from doorman._worker.outcome import TaskOutcome
from doorman.errors import JournalError, TaskFailed
from doorman.identity import boot_id
from doorman.journal.journal import Journal
from doorman.journal.records import (
    Added,
    Ended,
    Entry,
    OutcomeReceived,
    ProcessLaunched,
    ProcessProven,
    Record,
    Requeued,
    Started,
    Stopped,
)
from doorman.launcher import Exited, outcome_files
from doorman.states import State
from doorman.task import Task
from remit import Location
from remit.codec import printable
from remit.config import private_location

_CONDITIONS: Final = frozenset({"can_run", "cancel_when"})
"""Options whose functions decide when a task starts or ends. Unlike listeners they are not journalled."""
POLICY_DEFAULTS: Final = {
    name: parameter.default
    for name, parameter in inspect.signature(Task).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and name not in _CONDITIONS | {"kwargs"}
}
"""The journalled options of a task, with their defaults."""
_log = logging.getLogger(__name__)


class Recorder:
    """Writes the records of one manager. Without a journal its methods do nothing."""

    def __init__(self, journal: str | os.PathLike[str] | Journal | None) -> None:
        self._ours = isinstance(journal, str | os.PathLike)
        self.journal = Journal(journal) if isinstance(journal, str | os.PathLike) else journal
        self._with_outcome: set[str] = set()
        self._leaving = False
        self._ids: dict[str, int] = {}  # The ids in the journal, and the `id()` of the task objects; 0 if recovered.

    def remember(self, entry: Entry) -> None:
        """Reserve the id of a recovered task, and note whether its outcome is in the journal."""
        self._ids[entry.added.task] = 0
        if entry.outcome is not None:
            self._with_outcome.add(entry.added.task)

    def check(self) -> None:
        """Raise JournalError if a record could not be written: a manager must stop without its journal."""
        if self.journal is not None:
            self.journal.check()

    def leaving(self) -> None:
        """Record no end of a task that is cancelled from now on: the next manager runs it again."""
        self._leaving = True

    def private_place(self) -> Location:
        """Return the private location of the earlier manager, or a new one."""
        if self.journal is None:
            return private_location("doorman")
        if self.journal.location is None:
            self.journal.opened(pickle.dumps(private_location("doorman")))
        place: Location = pickle.loads(self.journal.location or b"")
        return place

    def close(self) -> None:
        """Close the journal, unless it was opened by the user."""
        journal, self.journal = self.journal, None
        if journal is not None and self._ours:
            journal.close()

    def added(self, task: Task, call: bytes) -> None:
        """Record that a task was added. Raises JournalError."""
        if self.journal is None:
            return
        if self._ids.get(task.id) == id(task):
            return  # Recorded before an interrupt of the caller.
        number = int(task.id)
        while task.id in self._ids:  # Each process counts from 1; ids in the journal must stay unique.
            number += 1
            task.id = f"{number}"
        command = tuple(map(printable, task.argv))
        after = tuple(first.id for first in task.after)
        self._write(Added(task.id, printable(task.name), command, pickled_policy(task), call, after))
        self._ids[task.id] = id(task)

    def write(self, attempt: Attempt, action: lifecycle.WriteRecord) -> None:
        """Write the record that an action of an attempt requires. Raises JournalError."""
        if self.journal is None:
            return
        task = attempt.task
        match action.entry:
            case JournalEntry.STARTED:
                self._with_outcome.discard(task.id)
                secret = attempt.credential.secret
                self._write(Started(task.id, attempt.id, attempt.number, secret, task.detach, boot_id()))
            case JournalEntry.LAUNCHED if attempt.launched is not None:
                self._write(ProcessLaunched(task.id, attempt.launched.pid, attempt.launched.inode))
            case JournalEntry.PROVEN if attempt.identity is not None:
                self._write(ProcessProven(task.id, attempt.identity, attempt.proven_at))
            case JournalEntry.STOPPED if attempt.stopping is not None and not self._leaving:
                self._write(Stopped(task.id, attempt.stopping))
            case JournalEntry.OUTCOME if attempt.outcome is not None:
                self._with_outcome.add(task.id)
                self._write(OutcomeReceived(task.id, attempt.outcome.encode()))
            case JournalEntry.REQUEUED:
                self._write(Requeued(task.id, attempt.number if attempt.counted else attempt.number - 1))
            case JournalEntry.ENDED if action.state is not None:
                self.ended(task, action.state, action.value, action.error)

    def ended(self, task: Task, state: State, value: Any, error: BaseException | None) -> None:
        """Record that a task has ended, unless the next manager will run it again. Raises JournalError."""
        if self.journal is None or task.id not in self._ids:
            return
        may_run_again = task.identity is None or task.attempt <= task.retries or task.restart != "temporary"
        if self._leaving and may_run_again and state in (State.CANCELLED, State.FAILED):
            return
        recorded = task.id in self._with_outcome and state in (State.DONE, State.FAILED)
        empty = recorded or (error is None and state is not State.DONE)
        result = (None, None) if empty else _pickled_result(task, value, error)
        self._write(Ended(task.id, state, task.exit_code, task.signal, task.max_rss, *result))
        self._with_outcome.discard(task.id)

    def _write(self, record: Record) -> None:
        if self.journal is None:
            return
        try:
            self.journal.append(record)
        except JournalError:
            if not self._leaving:
                raise
            _log.exception("a record was lost while the manager closed")

    def files_of(self, attempt: Attempt) -> str | None:
        """Return the path, without suffix, of a detached process's files; None for another, or without a journal."""
        if self.journal is None or not attempt.task.detach:
            return None
        return str(self.journal.make_folder() / attempt.id)

    def read_files(self, attempt: Attempt) -> tuple[TaskOutcome | None, Exited | None]:
        """Return the outcome and the exit that a detached process has stored in files; None for a missing one."""
        place = self.files_of(attempt)
        if place is None:
            return None, None
        data = outcome_files.read_outcome(place, attempt.credential)
        return None if data is None else TaskOutcome.decode(data), outcome_files.read_exit(place)

    def remove_files(self, attempt: Attempt) -> None:
        """Remove the files of a detached process. The journal has their contents."""
        place = self.files_of(attempt)
        if place is not None:
            outcome_files.remove_files(place)

    def sweep(self, kept: Container[str]) -> None:
        """Remove the files of all other attempts."""
        if self.journal is not None:
            outcome_files.remove_stale(self.journal.folder, kept)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # untyped
    """Pickles an option. Tasks in it are pickled as their ids."""

    def persistent_id(self, obj: Any) -> str | None:
        return obj.id if isinstance(obj, Task) else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tasks: Mapping[str, Task]) -> None:
        super().__init__(file)
        self._tasks = tasks

    def persistent_load(self, pid: Any) -> Any:
        return self._tasks[pid]


def policy_of(added: Added, tasks: Mapping[str, Task]) -> dict[str, Any]:
    """Return the journalled options of a task. ``tasks`` has the tasks added before, by id: options may name them."""
    policy: dict[str, Any] = {}
    for name, data in pickle.loads(added.policy).items():
        try:
            policy[name] = _Unpickler(io.BytesIO(data), tasks).load()
        except Exception:  # noqa: BLE001 - unpickling runs the user's code, which may raise anything
            _log.exception("task %s has lost its %s, which cannot be unpickled here", added.name, name)
    return policy


def pickled_policy(task: Task) -> bytes:
    """Return the options of a task, each pickled by itself, so that a failure loses only that option."""
    parts: dict[str, bytes] = {}
    for name, default in {**POLICY_DEFAULTS, "argv": ()}.items():
        value = getattr(task, name, default)
        if value is default:
            continue
        buffer = io.BytesIO()
        try:
            _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
        except Exception as error:  # noqa: BLE001 - pickling runs the user's code, which may raise anything
            _log.warning("%r: its %s cannot be journalled: %s", task, name, error)
            continue
        parts[name] = buffer.getvalue()
    return pickle.dumps(parts)


def _pickled_result(task: Task, value: Any, error: BaseException | None) -> tuple[bytes | None, bytes | None]:
    try:
        return (cloudpickle.dumps(value), None) if error is None else (None, cloudpickle.dumps(error))
    except Exception as fault:  # noqa: BLE001 - pickling runs the user's code, which may raise anything
        lost = TaskFailed(f"task {task.name!r} ended with {error or 'a value'}, which cannot be journalled: {fault}")
        return None, pickle.dumps(lost)
