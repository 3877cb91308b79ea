"""The state of one attempt of a task."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from doorman._scheduler.lifecycle import Deadline, HelloReceived, Phase
from doorman._scheduler.output import Outputs
from doorman._worker.main import WorkSpec
from doorman._worker.outcome import TaskOutcome
from doorman._worker.pickling import script_of
from doorman._worker.signed_channel import TASK_REPORTS, SignedReceiver
from doorman.identity import SECRET_BYTES, Credential, Identity
from doorman.launcher import Exited, Order, Reach
from doorman.limits import original_descriptor_limit
from doorman.process import Process
from doorman.states import State
from remit import Sender
from remit.codec import printable

if TYPE_CHECKING:
    from doorman.task import Task


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Durations in seconds."""

    grace: float  # Between SIGTERM and SIGKILL.
    hello: float  # From the launch to the proof.


@dataclass(eq=False)
class Attempt:
    """One attempt of a task. Only `lifecycle.step` changes it, except for `due`."""

    task: Task
    call: bytes  # The pickled callable with its arguments.
    number: int
    timeouts: Timeouts
    turn: int = 0  # The place of the task in the run queue.
    id: str = ""
    secret: bytes = field(default=b"", repr=False)  # Given for an earlier manager's attempt; else generated, like `id`.
    salt: bytes = b""  # Part of the nonce of a challenge. Only an attempt adopted from an earlier manager has one.
    phase: Phase = Phase.LAUNCHING
    launched: Process | None = None  # The process that the launcher started: the task's, or a wrapper around it.
    reach: Reach = Reach.BELOW  # Where the task's process may be, seen from the launched one.
    own: Process | None = None  # The task's process if it is not the launched one.
    hellos: tuple[HelloReceived, ...] = ()  # Arrived before `Launched`.
    identity: Identity | None = None  # The process that was proven to be the task's.
    proven_at: float = 0.0  # Monotonic time of the proof.
    sender: Sender | None = None  # Where the proven process can be reached.
    reports: int = 0  # Number of the newest progress report.
    outcome: TaskOutcome | None = None
    exited: Exited | None = None
    waited: bool = False  # Whether the wait for a result is over.
    stopping: State | None = None  # The state that the task goes to, once the manager has stopped the process.
    error: BaseException | None = None  # The task's error if it fails because it was stopped.
    final: bool = False  # Whether the task ends with this attempt, in spite of its policy.
    abandoned: bool = False  # Whether recovery found that its proven process has ended.
    counted: bool = True  # Whether it is one of the task's attempts; not if no process could be started.
    due: dict[Deadline, float] = field(default_factory=dict)  # Monotonic times.
    credential: Credential = field(init=False)
    channel: SignedReceiver = field(init=False)

    def __post_init__(self) -> None:
        self.handler = self.task.handler
        if self.task.grace is not None:
            self.timeouts = Timeouts(self.task.grace, self.timeouts.hello)
        self.id = self.id or f"{self.task.id}.{self.number}-{secrets.token_hex(4)}"
        self.credential = Credential(self.id, self.secret or secrets.token_bytes(SECRET_BYTES), task=self.task.id)
        self.channel = SignedReceiver(self.credential, TASK_REPORTS, joins=bool(self.secret))

    def snapshot(self) -> Any:
        """Return the state that a step may change, for `restore`. No value in it is ever modified."""
        return dict(vars(self)), self.task._retry_policy.history

    def restore(self, saved: Any) -> None:
        """Undo a step that was interrupted."""
        values, self.task._retry_policy.history = saved
        vars(self).update(values)

    @property
    def adopted(self) -> bool:
        """Whether this manager adopts its process, which an earlier manager started. False if the process has ended."""
        return bool(self.salt)

    @property
    def pid(self) -> int | None:
        """The pid of the task's process; before the proof, of the launched one."""
        if self.identity is not None:
            return self.identity.pid
        return None if self.launched is None else self.launched.pid


def launch_request(attempt: Attempt, payload: tuple[bytes, bytes], outputs: Outputs, record: str | None) -> Order:
    """Return the order for a launcher. ``payload`` has the manager's location and its initializer, both pickled."""
    task = attempt.task
    location, initializer = payload
    work = WorkSpec(
        location,
        task.id,
        printable(task.name),  # The name of a file need not be valid Unicode.
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
        script=script_of(attempt.call) or task._script,
        record=record,
        grace=attempt.timeouts.grace,
        open_files=original_descriptor_limit(),
    )
