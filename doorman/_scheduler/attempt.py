"""Orders: what the process of an attempt is told before it can say anything: written by the manager alone."""

from __future__ import annotations

import contextlib
import pickle
import secrets
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from doorman._scheduler.output import Outputs
from doorman._worker.main import WorkSpec
from doorman._worker.outcome import Outcome
from doorman._worker.signed_channel import SignedReceiver
from doorman.errors import WorkerDied
from doorman.identity import SECRET_BYTES, Credential
from doorman.launcher import Exited, Order, Reach
from doorman.process import Process
from doorman.states import State
from doorman.task import Task
from remit import Location, Sender

__all__ = ["Attempt", "Orders"]


EARLY: Final = 8
"""Hellos kept of an attempt whose process is not known yet: the true one is said again."""


@dataclass(eq=False)
class Attempt:
    """One try of a task."""

    task: Task
    call: bytes
    number: int
    turn: int = 0
    """Its task's place among those that wait, should no process be had."""
    id: str = ""
    handler: str = field(init=False)
    launched: Process | None = None
    """What the launcher started: the task's process, or a wrapper around it."""
    reach: Reach = Reach.BELOW
    """Where the task's process may be, seen from there."""
    own: Process | None = None
    """The task's process where that is not what was launched."""
    hellos: deque[tuple[dict[str, Any], Any]] = field(default_factory=lambda: deque(maxlen=EARLY))
    """The hellos, and their senders, that came before the launcher's word. Anybody may have said them."""
    sender: Sender | None = None
    """The way to the process once it is proven."""
    reports: int = 0
    """The number of the newest report of its progress."""
    outcome: Outcome | None = None
    exited: Exited | None = None
    stopping: State | None = None
    """Why it was told to end: the state it goes to."""
    error: BaseException | None = None
    """What it ends with if it fails because it was told to end."""
    secret: bytes = field(default=b"", repr=False)
    """Of an attempt that a manager before this one began; else it is made here, as the id is."""
    salt: bytes = b""
    """Of such an attempt: what a challenge to its process is made of."""
    final: bool = False
    """Whether its end is its task's, whatever the policy says of another try."""
    credential: Credential = field(init=False)
    parts: SignedReceiver = field(init=False)

    def __post_init__(self) -> None:
        self.handler = self.task.handler
        self.id = self.id or f"{self.task.id}.{self.number}-{secrets.token_hex(4)}"
        self.credential = Credential(self.id, self.secret or secrets.token_bytes(SECRET_BYTES), task=self.task.id)
        self.parts = SignedReceiver(self.credential)

    @property
    def pid(self) -> int | None:
        """The number of the task's process as far as it is known, for measuring its load."""
        if self.task.identity is not None:
            return self.task.identity.pid
        return None if self.launched is None else self.launched.pid

    def verdict(self) -> tuple[State, Any, BaseException | None]:
        """Say how it ended, once its process has: the state, the value and the error. Four cases, in this order."""
        exited = self.exited or Exited(self.id, None, None)
        died = self.error or WorkerDied(self.pid, exited.exit_code, exited.signal)
        if self.outcome is not None and self.stopping is not State.EXPIRED:  # 1. it told its result
            value, error = self.outcome.unpickle()
            return State.DONE if error is None else State.FAILED, value, error
        if self.stopping is not None:  # 2. it was told to end
            return self.stopping, None, died if self.stopping is State.FAILED else None
        if exited.exit_code == 0 and self.task.identity is not None and self.task.argv:  # 3. a command that ended well
            return State.DONE, 0, None
        unknown = exited.exit_code is None and exited.signal is None  # 4. it died
        return State.LOST if unknown else State.FAILED, None, died

    def terminate(self) -> None:
        """Ask it to end: the task's process if it is known apart from its wrapper, else the group of what was launched.

        The end of a wrapper would be the end of the task's grace. What was stopped is continued, so that it can end.
        """
        for number in (signal.SIGTERM, signal.SIGCONT):
            if self.own is None or not _allowed(self.own.signal, number):
                self.signal(number)

    def signal(self, number: int) -> None:
        """Signal the whole group of what was launched, and the task's process; through pidfds alone."""
        for process in (self.launched, self.own):
            if process is not None and not _allowed(process.signal_group, number):
                _allowed(process.signal, number)

    def end_own(self) -> None:
        """Kill the task's process where that is not what was launched, which has ended."""
        if self.own is not None and not _allowed(self.own.signal_group, signal.SIGKILL):
            _allowed(self.own.signal, signal.SIGKILL)

    def close(self) -> None:
        """Let go of the processes, and make every later hello late."""
        self.credential.revoke()
        for process in (self.launched, self.own):
            if process is not None:
                process.close()


def _allowed(send: Callable[[int], bool], number: int) -> bool:
    """Send a signal; False if it reached nobody, or if what others started for us is another user's."""
    with contextlib.suppress(PermissionError):
        return send(number)
    return False


class Orders:
    """Writes the orders of one manager. ``initializer`` is pickled, or empty."""

    def __init__(self, location: Location, initializer: bytes) -> None:
        self._location = pickle.dumps(location)
        self._initializer = initializer

    def written(self, attempt: Attempt, outputs: Outputs, *, record: str | None) -> Order:
        """Return what a launcher needs to know."""
        task = attempt.task
        work = WorkSpec(
            self._location,
            task.id,
            task.name.encode(errors="backslashreplace").decode(),  # A file's name need not be text.
            attempt.number,
            attempt.call,
            task.wrapper,
            self._initializer,
            task.limits,
        )
        return Order(
            attempt.id,
            attempt.credential.secret,
            payload=msgspec.msgpack.encode(work),
            command=task.argv,
            env=task.env,
            cwd=task.cwd,
            stdout=outputs.stdout,
            stderr=outputs.stderr,
            detach=task.detach,
            record=record,
        )
