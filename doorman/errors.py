"""Errors: everything that Doorman raises on purpose, in one tree.

::

    DoormanError
    ├── TaskError            about one task
    │   ├── TaskNotPicklable     it cannot travel to a process
    │   ├── TaskFailed           what it raised, as text; the cause of the exception that ``result()`` raises
    │   ├── WorkerDied           its process ended without a result
    │   ├── TaskCancelled        somebody cancelled it, or its manager was left
    │   │   └── DependencyFailed     a task that it comes after did not end well
    │   ├── TaskExpired          it ran for longer than it may
    │   ├── RestartedTooOften    it ended more often than it may be restarted
    │   ├── LimitNotApplied      its process could not be limited as it was to be
    │   ├── TaskAlreadyAdded     a task object stands for one run only
    │   ├── TaskDetached         it runs on without the manager that was left
    │   ├── NotInTask            there is no current task here
    │   └── ResultTimeout        it has not ended in time
    ├── ControlError         about asking a manager from outside
    │   ├── ManagerNotFound      no such manager is known here
    │   ├── ManagerSilent        it does not answer
    │   ├── ControlRefused       it does not answer to this one
    │   └── NameTaken            another manager has that name
    ├── BadCommandLine       what the command line or its files say makes no sense
    ├── BadRule              a rule that contradicts itself
    ├── LaunchRefused        no process can be started now; the task stays waiting
    ├── PreloadFailed        the zygote could not import what its children need
    ├── PoolFailed           workers cannot be kept alive
    ├── IdentityRefused      a process is not what it says it is
    ├── JournalError         a journal cannot be read or written
    │   └── JournalInUse         another manager writes to it
    └── PidfdUnavailable     this system cannot hold a process by a descriptor
"""

from __future__ import annotations

import enum
import signal
from concurrent.futures import BrokenExecutor

__all__ = [
    "BadCommandLine",
    "BadRule",
    "ControlError",
    "ControlRefused",
    "DependencyFailed",
    "DoormanError",
    "IdentityRefused",
    "JournalError",
    "JournalInUse",
    "LaunchRefused",
    "LimitNotApplied",
    "ManagerNotFound",
    "ManagerSilent",
    "NameTaken",
    "NotInTask",
    "PidfdUnavailable",
    "PoolFailed",
    "PreloadFailed",
    "RestartedTooOften",
    "ResultTimeout",
    "TaskAlreadyAdded",
    "TaskCancelled",
    "TaskDetached",
    "TaskError",
    "TaskExpired",
    "TaskFailed",
    "TaskNotPicklable",
    "WorkerDied",
]


class DoormanError(Exception):
    """Root of all errors that Doorman raises on purpose."""


class TaskError(DoormanError):
    """Root of the errors about one task."""


class TaskNotPicklable(TaskError, TypeError):
    """Raised by ``add_task`` when the callable or its arguments cannot travel to another process."""


class TaskFailed(TaskError):
    """Tells in its text what a task raised, with the traceback of its process.

    It is the cause of what ``result()`` raises; raised itself when the exception cannot travel.
    """


class WorkerDied(TaskError):
    """Raised when a task's process ended without a result."""

    def __init__(self, pid: int | None, exit_code: int | None, signal_number: int | None, detail: str = "") -> None:
        self.pid = pid
        self.exit_code = exit_code
        self.signal = None if signal_number is None else signal.Signals(signal_number)
        super().__init__(f"{self._who()}{self._how()}{': ' + detail if detail else ''}")

    def __reduce__(self) -> tuple[object, ...]:
        return _worker_died, (self.pid, self.exit_code, self.signal, str(self))

    def _who(self) -> str:
        return "no process was started" if self.pid is None else f"process {self.pid} ended without a result"

    def _how(self) -> str:
        if self.signal is not None:
            return f", killed by {self.signal.name}"
        if self.exit_code is not None:
            return f", exit code {self.exit_code}"
        return "" if self.pid is None else "; nobody could see how"


def _worker_died(pid: int | None, exit_code: int | None, signal_number: int | None, text: str) -> WorkerDied:
    error = WorkerDied(pid, exit_code, signal_number)
    error.args = (text,)
    return error


class TaskCancelled(TaskError):
    """Raised by ``result()`` of a task that was cancelled, or stopped with its manager."""


class DependencyFailed(TaskCancelled):
    """Raised by ``result()`` of a task that comes after one that did not end well; that one's error is the cause."""


class RestartedTooOften(TaskError):
    """Raised by ``result()`` of a task that ended more often than its intensity allows; the last error is the cause."""


class LimitNotApplied(TaskError):
    """Raised by ``result()`` of a task whose process could not be limited; none of the task's code has run."""


class TaskExpired(TaskError, TimeoutError):
    """Raised by ``result()`` of a task that ran for longer than its ``expires_in``."""


class TaskAlreadyAdded(TaskError, ValueError):
    """Raised when one task object is added twice: it stands for one run, with one process and one result."""


class TaskDetached(TaskError):
    """Raised by ``result()`` of a detached task whose manager was left: it runs on, for the journal's next manager."""


class NotInTask(TaskError, RuntimeError):
    """Raised by ``current_task()`` outside a task."""


class ResultTimeout(TaskError, TimeoutError):
    """Raised by ``result(timeout)`` when the task has not ended in time; it goes on."""


class ControlError(DoormanError):
    """Root of the errors about asking a manager from outside."""


class ManagerNotFound(ControlError, LookupError):
    """Raised when no manager of that name is known here, or what is there is none."""


class ManagerSilent(ControlError, TimeoutError):
    """Raised when a manager does not answer in time: it has ended, or nobody ticks it."""


class ControlRefused(ControlError, PermissionError):
    """Raised when a manager does not answer to whoever asks."""


class NameTaken(ControlError, ValueError):
    """Raised when another manager of this user's has that name already."""


class BadCommandLine(DoormanError, ValueError):
    """Raised when a command line, or a file that it names, makes no sense; the text tells what to write instead."""


class BadRule(DoormanError, ValueError):
    """Raised when a rule contradicts itself."""


class LaunchRefused(DoormanError):
    """Raised by ``launch`` when no process can be started now; try again after the next ``poll``."""


class PreloadFailed(DoormanError):
    """Raised when the zygote cannot import what its children need; the text ends with its traceback."""


class PoolFailed(DoormanError, BrokenExecutor):
    """Raised when a pool's workers die faster than they are worth replacing, or cannot even begin; see its cause."""


class Refusal(enum.Enum):
    """Why a hello was not believed."""

    MALFORMED = "not a hello"
    WRONG_ATTEMPT = "a hello for another attempt"
    FORGED = "not signed with the attempt's secret"
    LATE = "the attempt is over"
    REPLAYED = "another process has already proven this attempt"
    ELSEWHERE = "a process on another host"
    WRONG_PEER = "the kernel says that another process sent it"
    NO_SUCH_PROCESS = "the process is not there"
    OTHER_PROCESS = "its number belongs to another process"
    NOT_DESCENDANT = "not descended from what was launched"


class IdentityRefused(DoormanError):
    """Raised when a process is not what it says it is; ``reason`` names the case."""

    def __init__(self, reason: Refusal, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason


class JournalError(DoormanError):
    """Raised when a journal cannot be read or written, or is none."""


class JournalInUse(JournalError):
    """Raised when a second manager opens the journal of one that is alive."""


class PidfdUnavailable(DoormanError):
    """Raised when this system cannot hold a process by a descriptor."""
