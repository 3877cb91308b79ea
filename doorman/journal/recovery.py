"""Recovery of the tasks of an earlier manager from its journal, and adoption of their processes."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Final

from doorman._scheduler import lifecycle
from doorman._scheduler.attempt import Attempt
from doorman._scheduler.base_manager import BaseManager
from doorman._scheduler.lifecycle import (
    Adopted,
    AdoptedUnverified,
    CancelRequested,
    Deadline,
    FailRequested,
    ProcessGone,
    ResultReceived,
    step,
)
from doorman._scheduler.run_queue import RunQueue
from doorman._scheduler.supervisor import Supervisor
from doorman._worker.outcome import TaskOutcome
from doorman.errors import IdentityRefused
from doorman.identity import NODE_ID, Identity, boot_id
from doorman.journal.journal import Finished, finished_of
from doorman.journal.recorder import Recorder, policy_of
from doorman.journal.records import Entry
from doorman.launcher import Exited, Launched, Launcher, Order
from doorman.launcher.base import EpollLauncher
from doorman.process import Descriptors, Process, process_by_inode
from doorman.states import State
from doorman.task import Task

LEFTOVERS_S: Final = 2.0
"""Seconds to wait for the end of killed processes that outlived the earlier manager without being detached."""
SALT_BYTES: Final = 16


class AdoptedProcessLauncher(EpollLauncher):
    """A launcher that also reports the exits of adopted processes.

    `Exited` of an adopted process has no exit code, which only the parent of the process can read.
    """

    def __init__(self, launcher: Launcher) -> None:
        super().__init__()
        self._launcher = launcher
        self._epoll.register(launcher.fileno(), select.EPOLLIN)
        self._watched: dict[int, tuple[str, Process]] = {}

    def watch(self, attempt: str, process: Process) -> None:
        """Report the exit of a process in a later `poll`. The caller still has to close its own handle."""
        own = Process(process.pid, Descriptors(map(os.dup, (process.fileno(),))))
        self._watched[own.fileno()] = attempt, own
        self._epoll.register(own, select.EPOLLIN)

    def launch(self, order: Order) -> None:
        """Launch a process by the wrapped launcher. Raises LaunchRefused."""
        self._launcher.launch(order)

    def kill(self, attempt: str) -> None:
        """Kill by the wrapped launcher. The descendants left by an adopted process are killed by its own zygote."""
        self._launcher.kill(attempt)

    def _handle(self, descriptor: int, mask: int) -> None:
        """Handle the events of the wrapped launcher, or the pidfd of an adopted process that has ended."""
        if descriptor not in self._watched:
            self._events.extend(self._launcher.poll())
            return
        # The event first: an interrupt may repeat it, but must not lose it.
        attempt, process = self._watched[descriptor]
        self._events.append(Exited(attempt, None, None))
        self._epoll.unregister(descriptor)
        del self._watched[descriptor]
        process.close()

    def _close_processes(self, deadline: float, *, ours: bool) -> None:
        self._launcher.close(max(0.0, deadline - time.monotonic()))
        for _, process in self._watched.values():
            process.close()
        self._watched = {}


class Recovery:
    """Restores the tasks of a journal: ended, waiting, or running in a process that this manager adopts."""

    def __init__(
        self, recorder: Recorder, run_queue: RunQueue, supervisor: Supervisor, launcher: AdoptedProcessLauncher
    ) -> None:
        self._recorder = recorder
        self._run_queue = run_queue
        self._supervisor = supervisor
        self._launcher = launcher

    def run(self, manager: BaseManager, entries: Iterable[Entry]) -> tuple[Task, ...]:
        """Add the tasks of the entries to ``manager``, and return them in the same order."""
        entries = tuple(entries)
        self._end_leftovers(entry for entry in entries if entry.started and not _outlives(entry))
        tasks: dict[str, Task] = {}
        for entry in entries:
            task = tasks[entry.added.task] = RecoveredTask(entry, tasks)
            self._recorder.remember(entry)
            self._place(task, task._adopt(manager), entry)
        self._recorder.sweep({attempt.id for attempt in self._supervisor.attempts})
        return tuple(tasks.values())

    def _place(self, task: RecoveredTask, call: bytes, entry: Entry) -> None:
        finished = finished_of(entry)
        if finished is not None:
            task.set_finished(finished, entry)
        elif entry.started is None:
            self._run_queue.add(task, call)
        else:
            started, turn = entry.started, self._run_queue.next_turn()
            attempt = Attempt(
                task, call, entry.number, self._supervisor.timeouts, turn, started.attempt, started.secret
            )
            replay(attempt, entry)
            self._supervisor.restore(attempt, self._found(attempt, entry))

    def _found(self, attempt: Attempt, entry: Entry) -> lifecycle.Event:
        """Return `ProcessGone`, or an event that adopts the process of an attempt if it is detached and still runs."""
        identity = attempt.identity
        process = None if identity is None or not _outlives(entry) else self._find(identity)
        if process is None or identity is None:
            return ProcessGone()
        attempt.credential.confirmed = identity
        attempt.salt = secrets.token_bytes(SALT_BYTES)
        if identity.inode is None:
            self._launcher.watch(attempt.id, process)
            process.close()  # The process must not be signalled before it has proven itself again.
            return AdoptedUnverified()
        wrapper = self._find_wrapper(entry, identity)
        launched, own = (process, None) if wrapper is None else (wrapper, process)
        self._launcher.watch(attempt.id, launched)
        return Adopted(launched, own)

    def _find(self, identity: Identity) -> Process | None:
        with contextlib.suppress(IdentityRefused):
            return identity.open()
        return None

    def _find_wrapper(self, entry: Entry, identity: Identity) -> Process | None:
        """Return the process that was launched, if it still runs and is another one than the proven process."""
        launched = entry.launched
        if launched is None or launched.inode is None or launched.inode == identity.inode:
            return None
        return process_by_inode(launched.inode, guess=launched.pid)

    def _end_leftovers(self, entries: Iterable[Entry]) -> None:
        """Kill the processes that should have ended with the earlier manager, and wait for their end."""
        processes = [process for entry in entries for process in _leftovers(entry)]
        for process in processes:
            process.signal_group(signal.SIGKILL)
        deadline = time.monotonic() + LEFTOVERS_S
        for process in processes:
            process.wait(deadline - time.monotonic())
            process.close()


def replay(attempt: Attempt, entry: Entry) -> None:
    """Replay the records of an attempt. Its actions are dropped: the earlier manager has executed them."""
    proven, stopped = entry.proven, entry.stopped
    if entry.launched is not None or proven is not None:
        # Without a handle: that of the earlier manager is gone.
        step(attempt, Launched(attempt.id, process=None), 0.0)  # type: ignore[arg-type]
    if proven is not None:
        identity = replace(proven.identity, node_id=NODE_ID)
        step(attempt, lifecycle.Proven(identity, sender=None), proven.at)  # type: ignore[arg-type]
    if stopped is not None and stopped.ends_as is State.CANCELLED:
        step(attempt, CancelRequested(), 0.0)
    elif stopped is not None and stopped.ends_as is State.EXPIRED:
        step(attempt, Deadline.EXPIRY, 0.0)
    elif stopped is not None:
        step(attempt, Deadline.LINGER if entry.outcome else FailRequested(None), 0.0)
    if entry.outcome is not None:  # Last: with an outcome `step` answers EXPIRY with LINGER, not with a stop.
        step(attempt, ResultReceived(TaskOutcome.decode(entry.outcome.outcome)), 0.0)


class RecoveredTask(Task):
    """A task of an earlier manager. Its call is unpickled in its process only."""

    def __init__(self, entry: Entry, tasks: dict[str, Task]) -> None:
        added = entry.added
        policy = {"name": added.name, "handler": added.name, **policy_of(added, tasks)}
        argv = policy.pop("argv", ())
        super().__init__(lambda: None, **policy)
        self.argv = argv
        self.id, self.attempt = added.task, entry.number
        self._finished: Finished | None = None
        self._release(added.call)

    def set_finished(self, finished: Finished, entry: Entry) -> None:
        """Set the final state that the journal has."""
        self._finished = finished
        self.state, self.exit_code, self.signal = finished.state, finished.exit_code, finished.signal
        self.identity = None if entry.proven is None else entry.proven.identity
        self.max_rss = None if entry.ended is None else entry.ended.max_rss

    @property
    def _outcome(self) -> tuple[Any, BaseException | None]:
        finished, self._finished = self._finished, None
        if finished is not None:  # On request only: unpickling a result runs code.
            self._value, self._error = finished.opened()
        return super()._outcome


def _outlives(entry: Entry) -> bool:
    """Return whether a process may have outlived the earlier manager: it was detached and proven."""
    return entry.started is not None and entry.started.detach and entry.proven is not None


def _leftovers(entry: Entry) -> Iterator[Process]:
    """Yield the processes of an attempt that still run, found by inode alone: a pid may belong to another process."""
    assert entry.started is not None
    if entry.started.boot != boot_id():
        return
    known = [] if entry.launched is None else [(entry.launched.pid, entry.launched.inode)]
    known += [] if entry.proven is None else [(entry.proven.identity.pid, entry.proven.identity.inode)]
    for pid, inode in dict.fromkeys(known):
        process = None if inode is None else process_by_inode(inode, guess=pid)
        if process is not None:
            yield process
