"""The exceptions of Doorman, in one tree below `DoormanError`."""

from __future__ import annotations

import copyreg
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
    "ProgramNotRun",
    "Refusal",
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
    """Base class of the exceptions of Doorman."""

    # Pickled and copied without a call of the constructor, whose arguments are not the text in `args`.
    def __reduce__(self) -> tuple[object, ...]:
        return copyreg.__newobj__, (type(self), *self.args), vars(self)  # type: ignore[attr-defined]


class TaskError(DoormanError):
    """Base class of the exceptions about one task."""


class TaskNotPicklable(TaskError, TypeError):
    """Raised by ``add_task`` when the callable or its arguments cannot be pickled."""


class TaskFailed(TaskError):
    """The cause of the exception that ``result()`` raises, with the traceback of the task's process as its text.

    Raised instead of that exception if it cannot be pickled.
    """


def _signal(number: int) -> signal.Signals | int:
    """Return the signal of a number, or the number: most real-time signals have no name."""
    try:
        return signal.Signals(number)
    except ValueError:
        return number


class WorkerDied(TaskError):
    """Raised when a task's process ended without a result."""

    def __init__(self, pid: int | None, exit_code: int | None, signal_number: int | None, detail: str = "") -> None:
        self.pid = pid
        self.exit_code = exit_code
        self.signal = None if signal_number is None else _signal(signal_number)
        text = "no process was started" if pid is None else f"process {pid} ended without a result"
        if self.signal is not None:
            text += f", killed by {getattr(self.signal, 'name', f'signal {self.signal}')}"
        elif exit_code is not None:
            text += f", exit code {exit_code}"
        elif pid is not None:
            text += "; its exit status is unknown"
        super().__init__(f"{text}: {detail}" if detail else text)


class ProgramNotRun(WorkerDied):
    """Raised by ``result()`` of a command whose program cannot be run; the exit code is 127 if it was not found."""

    def __init__(self, program: str, reason: str, exit_code: int) -> None:
        super().__init__(None, exit_code, None)
        self.program, self.reason = program, reason
        self.args = (f"cannot run {program}: {reason}",)


class TaskCancelled(TaskError):
    """Raised by ``result()`` of a task that was cancelled, or stopped when its manager was closed."""


class DependencyFailed(TaskCancelled):
    """Raised by ``result()`` of a task that depends on a failed task, whose error is the cause."""


class RestartedTooOften(TaskError):
    """Raised by ``result()`` of a task that ended more often than its intensity allows. The last error is the cause."""


class LimitNotApplied(TaskError):
    """Raised by ``result()`` if a limit could not be applied; none of the task's code has run."""


class TaskExpired(TaskError, TimeoutError):
    """Raised by ``result()`` of a task that ran longer than its ``expires_in``."""


class TaskAlreadyAdded(TaskError, ValueError):
    """Raised if a task object is added twice, because it can hold only one result."""


class TaskDetached(TaskError):
    """Raised by ``result()`` of a detached task whose manager was closed. The journal's next manager adopts it."""


class NotInTask(TaskError, RuntimeError):
    """Raised by ``current_task()`` outside the code of a task."""


class ResultTimeout(TaskError, TimeoutError):
    """Raised by ``result(timeout)`` if the task has not finished in time; the task runs on."""


class ControlError(DoormanError):
    """Base class of the exceptions about requests to a running manager."""


class ManagerNotFound(ControlError, LookupError):
    """Raised if no manager has the given name on this host, or no manager serves the given location."""


class ManagerSilent(ControlError, TimeoutError):
    """Raised if a manager does not answer in time: it has ended, or its program does not tick it."""


class ControlRefused(ControlError, PermissionError):
    """Raised if a manager does not accept requests from this user."""


class NameTaken(ControlError, ValueError):
    """Raised if another manager of this user has the same name."""


class BadCommandLine(DoormanError, ValueError):
    """Raised if a command line, or a file that it names, is invalid. The text states the correction."""


class BadRule(DoormanError, ValueError):
    """Raised if the bounds of a rule contradict each other."""


class LaunchRefused(DoormanError):
    """Raised by ``launch`` if no process can be started now. Try again after the next ``poll``."""


class PoolFailed(DoormanError, BrokenExecutor):
    """Raised if the workers of a pool end too often, or if their initializer fails. The error is the cause."""


class Refusal(enum.Enum):
    """Reason for the refusal of a hello."""

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
    """Raised if a process cannot prove its identity; ``reason`` names the case."""

    def __init__(self, reason: Refusal, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason


class JournalError(DoormanError):
    """Raised if a journal cannot be read or written, or if the file is not a journal."""


class JournalInUse(JournalError):
    """Raised if another manager that is alive writes to the journal."""


class PidfdUnavailable(DoormanError):
    """Raised on a system without pidfds."""
