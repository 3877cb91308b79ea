"""All that a manager knows of one attempt of a task."""

from __future__ import annotations

import secrets
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from doorman._scheduler.lifecycle import HelloReceived, Phase
from doorman._scheduler.output import Outputs
from doorman._worker.main import WorkSpec
from doorman._worker.outcome import TaskOutcome
from doorman._worker.signed_channel import TASK_REPORTS, SignedReceiver
from doorman.identity import SECRET_BYTES, Credential, Identity
from doorman.launcher import Exited, Order, Reach
from doorman.process import Process
from doorman.states import State
from remit import Sender

if TYPE_CHECKING:
    from doorman.task import Task

__all__ = ["Attempt", "Timeouts", "launch_request"]

EARLY: Final = 8
"""Hellos that are kept of an attempt whose process is not known yet. The process repeats its own."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds that a manager gives to each attempt."""

    grace: float
    """Between SIGTERM and SIGKILL."""
    hello: float
    """From the launch to the proof."""


@dataclass(eq=False)
class Attempt:
    """One attempt of a task. Only `lifecycle.step` changes it."""

    task: Task
    call: bytes
    """The pickled callable with its arguments."""
    number: int
    timeouts: Timeouts
    turn: int = 0
    """The place of its task in the run queue."""
    id: str = ""
    secret: bytes = field(default=b"", repr=False)
    """Of an attempt of an earlier manager; otherwise it is made here, like the id."""
    salt: bytes = b""
    """Of an attempt whose process was adopted from an earlier manager: part of the nonce of its challenge."""
    phase: Phase = Phase.LAUNCHING
    launched: Process | None = None
    """What the launcher started: the task's process, or a wrapper around it."""
    reach: Reach = Reach.BELOW
    """Where the task's process may be, seen from there."""
    own: Process | None = None
    """The task's process where that is not what was launched."""
    hellos: deque[HelloReceived] = field(default_factory=lambda: deque(maxlen=EARLY))
    """Hellos that arrived before the launcher's report of the process. Any peer may have sent them."""
    identity: Identity | None = None
    """The process that was proven to be the task's."""
    proven_at: float = 0.0
    """When it was, by the monotonic clock."""
    sender: Sender | None = None
    """Where the process can be reached once it is proven."""
    reports: int = 0
    """Number of the newest progress report."""
    outcome: TaskOutcome | None = None
    exited: Exited | None = None
    waited: bool = False
    """Whether no result is waited for any more."""
    stopping: State | None = None
    """Why it was stopped: the state that the task goes to."""
    error: BaseException | None = None
    """What the task ends with if it fails because it was stopped."""
    final: bool = False
    """Whether its end is its task's, whatever the policy says of another try."""
    abandoned: bool = False
    """Whether its manager died, and its process is gone."""
    counted: bool = True
    """Whether it counts as one of the task's tries; not if no process could be had."""
    credential: Credential = field(init=False)
    channel: SignedReceiver = field(init=False)

    def __post_init__(self) -> None:
        self.handler = self.task.handler
        self.id = self.id or f"{self.task.id}.{self.number}-{secrets.token_hex(4)}"
        self.credential = Credential(self.id, self.secret or secrets.token_bytes(SECRET_BYTES), task=self.task.id)
        self.channel = SignedReceiver(self.credential, TASK_REPORTS, joins=bool(self.secret))

    @property
    def adopted(self) -> bool:
        """Whether an earlier manager began it."""
        return bool(self.salt)

    @property
    def pid(self) -> int | None:
        """The number of the task's process as far as it is known; of the launched one before the proof."""
        if self.identity is not None:
            return self.identity.pid
        return None if self.launched is None else self.launched.pid


def launch_request(attempt: Attempt, payload: tuple[bytes, bytes], outputs: Outputs, record: str | None) -> Order:
    """Return what a launcher needs. ``payload`` are the manager's location and its initializer, both pickled."""
    task = attempt.task
    location, initializer = payload
    work = WorkSpec(
        location,
        task.id,
        task.name.encode(errors="backslashreplace").decode(),  # The name of a file need not be text.
        attempt.number,
        attempt.call,
        task.wrapper,
        initializer,
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
