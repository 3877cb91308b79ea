"""Recovery: what a new manager makes of the journal of the one before it, task by task."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Final

from doorman._scheduler.attempt import Attempt
from doorman._scheduler.base_manager import BaseManager
from doorman._scheduler.run_queue import RunQueue
from doorman._scheduler.supervisor import Running
from doorman._worker.outcome import Outcome
from doorman.errors import IdentityRefused, WorkerDied
from doorman.identity import NODE_ID, Identity, boot_id
from doorman.journal.journal import Finished, finished_of
from doorman.journal.recorder import Recorder, policy_of
from doorman.journal.records import Entry
from doorman.launcher import Event, Exited, Launcher, Order
from doorman.process import Process, process_by_inode
from doorman.states import State
from doorman.task import Task

__all__ = ["AdoptedProcessLauncher", "Recovery"]


class AdoptedProcessLauncher:
    """Launches as another launcher does, and tells the ends of processes that are nobody's children here.

    How such a process ended only its parent can know: its `Exited` says nothing but that it has.
    """

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._epoll = select.epoll()
        self._epoll.register(launcher.fileno(), select.EPOLLIN)
        self._inherited: dict[int, tuple[str, Process]] = {}

    def inherit(self, attempt: str, process: Process) -> None:
        """Tell of this process's end from now on. The handle stays the caller's."""
        own = Process(process.pid, os.dup(process.fileno()))
        self._inherited[own.fileno()] = attempt, own
        self._epoll.register(own, select.EPOLLIN)

    def launch(self, order: Order) -> None:
        """Ask the other launcher for a process. Raises LaunchRefused."""
        self._launcher.launch(order)

    def poll(self) -> list[Event]:
        """Return what has happened since the last call; never waits."""
        return [*self._launcher.poll(), *self._ends()]

    def fileno(self) -> int:
        """Return a descriptor that is readable whenever `poll` has something to return."""
        return self._epoll.fileno()

    def close(self, grace: float) -> None:
        """Close the other launcher, and let go of what was inherited."""
        self._launcher.close(grace)
        for _, process in self._inherited.values():
            process.close()
        self._inherited = {}
        with contextlib.suppress(ValueError):  # closed before
            self._epoll.close()

    def _ends(self) -> list[Event]:
        if not self._inherited:
            return []
        ended: list[Event] = []
        for descriptor, _ in self._epoll.poll(0):
            if descriptor in self._inherited:
                attempt, process = self._inherited.pop(descriptor)
                self._epoll.unregister(descriptor)
                process.close()
                ended.append(Exited(attempt, None, None))
        return ended


LEFTOVERS: Final = 2.0
"""Seconds to wait for processes that should have ended with their manager, and were killed by this one."""
SALT_BYTES: Final = 16


class Recovery:
    """Puts each task where it belongs: among those that have ended, that wait, or that run.

    ``over`` ends an attempt, as the manager does it. ``patience`` is how many seconds a process has to prove itself
    anew where the kernel cannot tell that it is the same.
    """

    def __init__(
        self,
        recorder: Recorder,
        admission: RunQueue,
        running: Running,
        launcher: AdoptedProcessLauncher,
        *,
        over: Callable[..., None],
        patience: float,
    ) -> None:
        self._recorder, self._launcher = recorder, launcher
        self._admission, self._running = admission, running
        self._over, self._patience = over, patience

    def run(self, owner: BaseManager, entries: Iterable[Entry]) -> tuple[Task, ...]:
        """Return the tasks of the entries, in their order; ``owner`` is asked to make progress by who waits for one."""
        entries = tuple(entries)
        _end_leftovers(entry for entry in entries if entry.started and not _outlives(entry))
        tasks: dict[str, Task] = {}
        for entry in entries:
            task = tasks[entry.added.task] = Recalled(entry, tasks)
            self._recorder.remember(entry)
            self._place(task, task._adopt(owner), entry)
        self._recorder.sweep({attempt.id for attempt in self._running})
        return tuple(tasks.values())

    def _place(self, task: Recalled, call: bytes, entry: Entry) -> None:
        """Four cases, in this order: it has ended; it waits; nothing of its attempt has run; something has."""
        finished = finished_of(entry)
        if finished is not None:
            task.recall(finished, entry)
        elif entry.started is None:
            self._admission.add(task, call)
        elif entry.proven is None:
            self._begin_anew(_attempt(task, call, entry), entry)
        else:
            attempt = _attempt(task, call, entry)
            attempt.outcome = None if entry.told is None else Outcome.decode(entry.told.outcome)
            self._recorder.recall(attempt)
            self._go_on(attempt, entry, replace(entry.proven.identity, node_id=NODE_ID))

    def _begin_anew(self, attempt: Attempt, entry: Entry) -> None:
        """Never told to go: the task waits as if this attempt had not been. Its process, if it comes, is to die."""
        self._running.remember(attempt.credential)
        task = attempt.task
        if entry.stopped is not None:
            died = WorkerDied(None, None, None, "its process never proved itself")
            error = died if entry.stopped.ends_as is State.FAILED else None
            self._recorder.ended(task, entry.stopped.ends_as, None, error)
            task._set_state(State.RUNNING)
            task._set_state(State.STOPPING)
            task._finish(entry.stopped.ends_as, error=error)
            return
        task.attempt -= 1
        self._recorder.again(task)
        self._admission.add(task, attempt.call)

    def _go_on(self, attempt: Attempt, entry: Entry, identity: Identity) -> None:
        """Two cases: the process is there, since it was detached; it is gone."""
        process = _found(identity) if _outlives(entry) else None
        if process is None:
            self._conclude(attempt, entry, identity)
            return
        attempt.credential.confirmed = identity
        attempt.salt = secrets.token_bytes(SALT_BYTES)
        if identity.inode is None:
            self._launcher.inherit(attempt.id, process)
            process.close()  # Nothing to signal it by, before it has proven itself anew.
            self._running.resume_unproven(attempt, self._patience)
            self._admission.started(attempt)
        else:
            self._take_over(attempt, entry, identity, process)

    def _take_over(self, attempt: Attempt, entry: Entry, identity: Identity, process: Process) -> None:
        """Hold it, as if it had been launched here: what it may still do, and for how long."""
        assert entry.proven is not None
        wrapper = _wrapper(entry, identity)
        attempt.launched, attempt.own = (process, None) if wrapper is None else (wrapper, process)
        self._launcher.inherit(attempt.id, attempt.launched)
        self._running.resume(attempt, identity, entry.proven.at)
        self._admission.started(attempt)
        if entry.stopped is not None:
            self._running.stop(attempt, entry.stopped.ends_as)

    def _conclude(self, attempt: Attempt, entry: Entry, identity: Identity) -> None:
        """Say how an attempt ended whose process is gone; what nobody knows may be tried again, or is lost."""
        assert entry.proven is not None
        self._running.resume(attempt, identity, entry.proven.at)
        self._admission.started(attempt)
        if entry.stopped is not None:
            attempt.stopping = entry.stopped.ends_as
            attempt.task._set_state(State.STOPPING)
        state, value, error = attempt.verdict()
        if state is State.LOST:
            retried = attempt.task.attempt <= attempt.task.retries
            state = State.FAILED if retried else State.LOST
            error = WorkerDied(identity.pid, None, None, "it ended with its manager or while there was none")
        self._over(attempt, state, value, error)


class Recalled(Task):
    """A task that was given to a manager before. What it calls is opened nowhere but in its process."""

    def __init__(self, entry: Entry, tasks: dict[str, Task]) -> None:
        added = entry.added
        policy = {"name": added.name, "handler": added.name, **policy_of(added, tasks)}
        argv = policy.pop("argv", ())
        super().__init__(_recalled, **policy)
        self.argv = argv
        self.id, self.attempt = added.task, entry.number
        self._finished: Finished | None = None
        self._release(added.call)

    def recall(self, finished: Finished, entry: Entry) -> None:
        """Stay as it ended."""
        self._finished = finished
        self.state, self.exit_code, self.signal = finished.state, finished.exit_code, finished.signal
        self.identity = None if entry.proven is None else entry.proven.identity
        self.max_rss = None if entry.ended is None else entry.ended.max_rss

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what `result` would raise; None if the task returned. Raises ResultTimeout."""
        self._open()
        return super().exception(timeout)

    @property
    def _outcome(self) -> tuple[Any, BaseException | None]:
        """The value and the error that it ended with."""
        self._open()
        return super()._outcome

    def _open(self) -> None:
        finished, self._finished = self._finished, None
        if finished is not None:  # Not before somebody asks: to unpickle a result runs code.
            self._value, self._error = finished.opened()


def _recalled(*_: Any) -> None:
    """Stand in for the callable of a task that was given to a manager before."""


def _attempt(task: Task, call: bytes, entry: Entry) -> Attempt:
    assert entry.started is not None
    return Attempt(task, call, entry.number, id=entry.started.attempt, secret=entry.started.secret)


def _outlives(entry: Entry) -> bool:
    """Tell whether its process may be alive and at work: it was detached, and told to go."""
    return entry.started is not None and entry.started.detach and entry.proven is not None


def _found(identity: Identity) -> Process | None:
    try:
        return identity.open()
    except IdentityRefused:
        return None


def _wrapper(entry: Entry, identity: Identity) -> Process | None:
    """Hold what the process was launched by, if that is another one, and there still."""
    launched = entry.launched
    if launched is None or launched.inode is None or launched.inode == identity.inode:
        return None
    return process_by_inode(launched.inode, guess=launched.pid)


def _end_leftovers(entries: Iterable[Entry]) -> None:
    """Kill what should have ended with its manager, where the kernel says that it is the very process; wait for it."""
    processes = [process for entry in entries for process in _leftovers(entry)]
    for process in processes:
        process.signal_group(signal.SIGKILL)
    deadline = time.monotonic() + LEFTOVERS
    for process in processes:
        process.wait(deadline - time.monotonic())
        process.close()


def _leftovers(entry: Entry) -> Iterator[Process]:
    assert entry.started is not None
    if entry.started.boot != boot_id():
        return
    known = [] if entry.launched is None else [(entry.launched.pid, entry.launched.inode)]
    known += [] if entry.proven is None else [(entry.proven.identity.pid, entry.proven.identity.inode)]
    for pid, inode in dict.fromkeys(known):
        process = None if inode is None else process_by_inode(inode, guess=pid)
        if process is not None:
            yield process
