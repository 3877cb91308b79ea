"""State machine of one attempt of a task: `step` turns an event into the actions that follow from it.

`step` alone decides how an attempt continues. It reads and changes only the `Attempt`: no clock, process, socket or
journal. It calls no user code. The supervisor executes the actions in order.
"""

from __future__ import annotations

import enum
import signal
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from doorman.errors import RestartedTooOften, TaskDetached, WorkerDied
from doorman.launcher import DescendantsLeft, Exited, Launched, LaunchFailed
from doorman.states import State

if TYPE_CHECKING:
    from doorman._scheduler.attempt import Attempt
    from doorman._worker.outcome import TaskOutcome
    from doorman.identity import Identity
    from doorman.process import Process
    from doorman.progress import Progress
    from remit import Sender

EARLY: Final = 8
"""Most hellos kept for an attempt whose process is not known yet. The process repeats its hello."""
RESULT_GRACE_S: Final = 0.5
"""Seconds to wait for the result of a process that has ended."""


class Phase(enum.IntEnum):  # Of int: the hash of a plain Enum is computed in Python, at each step.
    """Phase of an attempt."""

    LAUNCHING = enum.auto()  # The launcher was asked for a process.
    PROVING = enum.auto()  # The process exists and has not proven that it is the task's. No user code runs.
    RUNNING = enum.auto()  # The process is proven. User code runs.
    STOPPING = enum.auto()  # Stopped by the manager, proven or not; `Attempt.stopping` is the task's next state.
    EXITED = enum.auto()  # The process has ended. Its result may still arrive.
    ENDED = enum.auto()  # Every later event is ignored.


class Deadline(enum.IntEnum):
    """Deadline of an attempt. It is also the event that the deadline has passed."""

    HELLO = enum.auto()  # For the proof of the process.
    EXPIRY = enum.auto()  # For the end of user code.
    LINGER = enum.auto()  # For the exit of a process whose result has arrived, after its EXPIRY.
    KILL = enum.auto()  # For the exit after SIGTERM: the end of the grace period.
    RESULT = enum.auto()  # For a result, or the exit file of an adopted process, after the end of the process.


class JournalEntry(enum.Enum):
    """Record of a journal about an attempt."""

    STARTED = enum.auto()
    LAUNCHED = enum.auto()
    PROVEN = enum.auto()
    STOPPED = enum.auto()
    OUTCOME = enum.auto()
    REQUEUED = enum.auto()
    ENDED = enum.auto()


class SignalTarget(enum.Enum):
    """Receivers of a signal."""

    TASK = enum.auto()  # The task's process behind a wrapper, with its descendants. Without one: as ALL.
    ALL = enum.auto()  # The launched process, the task's process, their groups and their descendants.
    OWN = enum.auto()  # The group of the task's process behind a wrapper; nothing without one.


# -- events ----------------------------------------------------------------------------------------------------


class Admitted(msgspec.Struct, frozen=True):
    """The run queue lets the task start."""


class LaunchAccepted(msgspec.Struct, frozen=True):
    """The launcher has accepted the request."""


class LaunchDeclined(msgspec.Struct, frozen=True):
    """The launcher accepts no request now; a later one may succeed."""

    why: str


class LaunchInvalid(msgspec.Struct, frozen=True):
    """The request cannot be encoded, or a file for the output cannot be opened."""

    error: Exception


class HelloReceived(msgspec.Struct, frozen=True):
    """A process claims to be this attempt's. Any peer may have sent the hello."""

    hello: Any
    sender: Any


class Proven(msgspec.Struct, frozen=True):
    """A hello was verified. New handles: ``launched`` if the process is adopted, ``own`` if it is behind a wrapper."""

    identity: Identity
    sender: Sender
    launched: Process | None = None
    own: Process | None = None


class ProofRefused(msgspec.Struct, frozen=True):
    reason: str


class ProgressReceived(msgspec.Struct, frozen=True):
    """The process has sent a progress report, signed."""

    number: int
    progress: Progress


class ResultReceived(msgspec.Struct, frozen=True):
    """The process has sent its whole result, signed."""

    outcome: TaskOutcome


class FilesRead(msgspec.Struct, frozen=True):
    """The files of a detached process were read. A file that does not exist is None."""

    outcome: TaskOutcome | None
    exited: Exited | None


class OutcomeOpened(msgspec.Struct, frozen=True):
    """The outcome was unpickled."""

    value: Any
    error: BaseException | None


class CancelRequested(msgspec.Struct, frozen=True):
    """The task is to end: the user asks for it, or a sibling that stops its siblings has started."""


class FailRequested(msgspec.Struct, frozen=True):
    """A function of the task's policy raised."""

    error: BaseException | None


class ManagerClosing(msgspec.Struct, frozen=True):
    """The manager begins to close. Detached processes run on, all others are stopped."""


class ManagerClosed(msgspec.Struct, frozen=True):
    """The shutdown timeout of the manager is over, and the remaining processes were killed."""


class Adopted(msgspec.Struct, frozen=True):
    """The process of an attempt of an earlier manager is alive, and the manager has a handle of it."""

    launched: Process
    own: Process | None


class AdoptedUnverified(msgspec.Struct, frozen=True):
    """As `Adopted`, but the kernel cannot identify the process (before Linux 6.9): it has to prove itself."""


class ProcessGone(msgspec.Struct, frozen=True):
    """The process of an attempt of an earlier manager has ended, or must not be adopted."""


# fmt: off
Event: TypeAlias = (
    Admitted | LaunchAccepted | LaunchDeclined | LaunchInvalid | LaunchFailed | Launched | HelloReceived | Proven
    | ProofRefused | ProgressReceived | ResultReceived | DescendantsLeft | Exited | FilesRead | OutcomeOpened
    | CancelRequested | FailRequested | Deadline | ManagerClosing | ManagerClosed | Adopted | AdoptedUnverified
    | ProcessGone
)
# fmt: on


# -- actions ---------------------------------------------------------------------------------------------------


class Action(msgspec.Struct, frozen=True):
    """An effect that the supervisor executes for an attempt."""


class WriteRecord(Action, frozen=True):
    """Write a record to the journal. It is durable before the next action is executed."""

    entry: JournalEntry
    state: State | None = None
    value: Any = None
    error: BaseException | None = None


class TakeSlot(Action, frozen=True):
    """Count the attempt among those that run, and remove its task from the run queue."""


class Launch(Action, frozen=True):
    """Ask the launcher for a process. Leads to `LaunchAccepted`, `LaunchDeclined` or `LaunchInvalid`."""


class StopSiblings(Action, frozen=True):
    """Send `CancelRequested` to the attempts of other tasks with the same handler."""


class VerifyHello(Action, frozen=True):
    """Check a hello. Leads to `Proven` or `ProofRefused`."""

    hello: Any
    sender: Sender


class Challenge(Action, frozen=True):
    """Ask the sender of a hello to sign a nonce, as the hello may be a replay. May lead to `Proven`."""

    sender: Sender


class Reply(Action, frozen=True):
    """Answer a hello, signed: ``"go"`` lets user code begin, ``"die"`` ends the process."""

    word: str
    sender: Sender


class CountRefusal(Action, frozen=True):
    """Count a refused message, or a process that did not prove itself, by reason."""

    reason: str


class Signal(Action, frozen=True):
    """Signal processes through their pidfds. Does nothing if the manager has none.

    SIGCONT follows, so that a stopped process can obey. For KILL the launcher is asked as well.
    """

    number: signal.Signals
    target: SignalTarget


class KillDescendants(Action, frozen=True):
    """Let the launcher kill what an exited process has left."""


class SetDeadline(Action, frozen=True):
    """Schedule a deadline. ``at`` is a monotonic time."""

    deadline: Deadline
    at: float


class SetState(Action, frozen=True):
    """Change the state of the task. ``at`` is the monotonic time since which the attempt has been in it."""

    state: State
    at: float


class SetExit(Action, frozen=True):
    """Store in the task how its process ended."""

    exited: Exited


class ReportProgress(Action, frozen=True):
    """Store the progress in the task, and call its listeners."""

    progress: Progress


class ReadFiles(Action, frozen=True):
    """Read the files that a detached process has written. Leads to `FilesRead`."""


class OpenOutcome(Action, frozen=True):
    """Unpickle the outcome, which runs user code. Leads to `OutcomeOpened`."""


class CollectOutput(Action, frozen=True):
    """Read the rest of the output from the pipes of the process, and close them."""


class FreeSlot(Action, frozen=True):
    """Remove the attempt from those that run."""


class CloseProcess(Action, frozen=True):
    """Close the handles. Unless ``leave``, refuse later hellos and remove the files of the process."""

    leave: bool = False


class Requeue(Action, frozen=True):
    """Return the task to the run queue for another attempt, after ``delay`` seconds.

    ``state`` and ``error`` are the end of an attempt that counts. If it does not count, the task keeps its place in the
    queue and the number of its attempt. ``why`` is the reason that no process could be started: the run queue then
    admits no task for a short time.
    """

    delay: float = 0.0
    counted: bool = True
    why: str | None = None
    state: State | None = None
    error: BaseException | None = None


class Finish(Action, frozen=True):
    """End the task with a value or an error."""

    state: State
    value: Any = None
    error: BaseException | None = None


Actions: TypeAlias = list[Action]

KILL: Final = Signal(signal.SIGKILL, SignalTarget.ALL)
REPLAYED: Final = CountRefusal("another process has already proven this attempt")


def step(attempt: Attempt, event: Event, now: float) -> Actions:
    """Return the actions that follow from an event, in order; ``now`` is a monotonic time."""
    function = TABLE[event if type(event) is Deadline else type(event)].get(attempt.phase)
    return [] if function is None else function(attempt, event, now)


# -- starting --------------------------------------------------------------------------------------------------


def _admit(attempt: Attempt, event: Admitted, now: float) -> Actions:
    return [WriteRecord(JournalEntry.STARTED), TakeSlot(), Launch()]


def _stop_siblings(attempt: Attempt, event: LaunchAccepted, now: float) -> Actions:
    return [StopSiblings()] if attempt.task.stops_siblings else []


def _declined(attempt: Attempt, event: LaunchDeclined, now: float) -> Actions:
    return _requeue(attempt, Requeue(counted=False, why=event.why))


def _fail_invalid(attempt: Attempt, event: LaunchInvalid, now: float) -> Actions:
    return _finish(attempt, State.FAILED, None, event.error)


def _launch_failed(attempt: Attempt, event: LaunchFailed, now: float) -> Actions:
    """Requeue the task if the system could start no process: such an attempt does not count. Else retry or fail."""
    if event.back_pressure and attempt.stopping is None:
        return _requeue(attempt, Requeue(counted=False, why=f"no process can be started now: {event.why}"))
    error = attempt.error
    if error is None and attempt.stopping in (None, State.FAILED):
        error = WorkerDied(None, None, None, event.why)
    return _retry_or_finish(attempt, attempt.stopping or State.FAILED, None, error, now)


def _launched(attempt: Attempt, event: Launched, now: float) -> Actions:
    attempt.phase = Phase.PROVING
    attempt.launched, attempt.reach = event.process, event.reach
    hello = SetDeadline(Deadline.HELLO, now + attempt.timeouts.hello)
    return [WriteRecord(JournalEntry.LAUNCHED), SetState(State.PROVING, now), hello, *_kept_hellos(attempt)]


def _launched_late(attempt: Attempt, event: Launched, now: float) -> Actions:
    """Kill a process that was stopped before it existed."""
    attempt.launched, attempt.reach = event.process, event.reach
    return [WriteRecord(JournalEntry.LAUNCHED), KILL, *_kept_hellos(attempt)]


# -- proving ---------------------------------------------------------------------------------------------------


def _keep_hello(attempt: Attempt, event: HelloReceived, now: float) -> Actions:
    """Keep a hello that overtook the launcher's report: without the process it cannot be verified."""
    attempt.hellos = (*attempt.hellos, event)[-EARLY:]
    return []


def _kept_hellos(attempt: Attempt) -> Actions:
    kept: Actions = [VerifyHello(event.hello, event.sender) for event in attempt.hellos]
    attempt.hellos = ()
    return kept


def _check_hello(attempt: Attempt, event: HelloReceived, now: float) -> Actions:
    if attempt.adopted:
        return [Challenge(event.sender)]
    if attempt.launched is None:
        return _keep_hello(attempt, event, now)
    return [VerifyHello(event.hello, event.sender)]


def _proven(attempt: Attempt, event: Proven, now: float) -> Actions:
    """Let user code begin, after the journal has the process: recovery looks for it there."""
    attempt.phase = Phase.RUNNING
    attempt.identity, attempt.sender, attempt.proven_at = event.identity, event.sender, now
    attempt.launched, attempt.own = event.launched or attempt.launched, event.own
    shown = SetState(State.RUNNING, now)
    return [WriteRecord(JournalEntry.PROVEN), shown, *_expiry(attempt, now), Reply("go", event.sender)]


def _proven_again(attempt: Attempt, event: Proven, now: float) -> Actions:
    """Repeat the reply, which may have been lost. A hello from another client is a replay."""
    if attempt.sender is not None and attempt.sender.id != event.sender.id:
        return [REPLAYED]
    attempt.sender = event.sender
    return [Reply("go", event.sender)]


def _proven_late(attempt: Attempt, event: Proven, now: float) -> Actions:
    if attempt.sender is not None and attempt.sender.id != event.sender.id:
        return [REPLAYED]
    if event.launched is None:
        return [Reply("die", event.sender)]
    attempt.launched = event.launched  # Adopted, and its handle is new: the grace period begins now.
    kill = SetDeadline(Deadline.KILL, now + attempt.timeouts.grace)
    return [Reply("die", event.sender), _stop_signal(attempt), kill]


def _refuse(attempt: Attempt, event: ProofRefused, now: float) -> Actions:
    return [CountRefusal(event.reason)]


def _no_hello(attempt: Attempt, event: Deadline, now: float) -> Actions:
    late = CountRefusal("no hello in time")
    if attempt.adopted:  # It may be a process that is not the task's: send it no signal.
        return [late, *_exit_unseen(attempt, now)]
    return [late, *_stop(attempt, State.FAILED, now)]


def _no_hello_stopping(attempt: Attempt, event: Deadline, now: float) -> Actions:
    return _exit_unseen(attempt, now) if attempt.adopted and attempt.launched is None else []


# -- running ---------------------------------------------------------------------------------------------------


def _expiry(attempt: Attempt, since: float) -> Actions:
    """Return the deadline of the user code; the time until the proof does not count."""
    seconds = attempt.task.expires_in
    return [] if seconds is None else [SetDeadline(Deadline.EXPIRY, since + seconds)]


def _progress(attempt: Attempt, event: ProgressReceived, now: float) -> Actions:
    if attempt.identity is None:
        return [CountRefusal("progress of a process that has not proven itself")]
    if event.number <= attempt.reports:
        return []  # Sent again after a restart of the server.
    attempt.reports = event.number
    return [ReportProgress(event.progress)]


def _result(attempt: Attempt, event: ResultReceived, now: float) -> Actions:
    """Keep the result. The journal has it before the server acknowledges it and the process drops it."""
    if attempt.identity is None:
        return [CountRefusal("result of a process that has not proven itself")]
    if attempt.outcome is not None:
        return []
    attempt.outcome = event.outcome
    follow = _no_more_waiting(attempt, now) if attempt.phase is Phase.EXITED else []
    return [WriteRecord(JournalEntry.OUTCOME), *follow]


def _expired(attempt: Attempt, event: Deadline, now: float) -> Actions:
    """Stop user code that ran too long. If its result has arrived, the process has the grace period to exit."""
    if attempt.outcome is None:
        return _stop(attempt, State.EXPIRED, now)
    return [SetDeadline(Deadline.LINGER, now + attempt.timeouts.grace)]


# -- stopping --------------------------------------------------------------------------------------------------


def _stop_signal(attempt: Attempt) -> Action:
    return Signal(attempt.task.stop_signal, SignalTarget.TASK)


def _stop(attempt: Attempt, ends_as: State, now: float) -> Actions:
    """Send SIGTERM now and SIGKILL after the grace period. An unproven process gets SIGKILL now."""
    if attempt.stopping is not None:
        return []
    attempt.stopping = ends_as
    actions: Actions = [WriteRecord(JournalEntry.STOPPED), SetState(State.STOPPING, now)]
    if attempt.phase is Phase.EXITED:
        return actions
    actions.append(_stop_signal(attempt) if attempt.phase is Phase.RUNNING else KILL)
    attempt.phase = Phase.STOPPING
    return [*actions, SetDeadline(Deadline.KILL, now + attempt.timeouts.grace)]


def _cancel(attempt: Attempt, event: CancelRequested, now: float) -> Actions:
    attempt.final = True  # Also if it is being stopped already for another reason.
    return _stop(attempt, State.CANCELLED, now)


def _fail(attempt: Attempt, event: FailRequested, now: float) -> Actions:
    attempt.final = True
    attempt.error = event.error or attempt.error
    return _stop(attempt, State.FAILED, now)


def _linger_over(attempt: Attempt, event: Deadline, now: float) -> Actions:
    return _stop(attempt, State.FAILED, now)  # FAILED does not show: the attempt ends by its result, which has arrived.


def _kill(attempt: Attempt, event: Deadline, now: float) -> Actions:
    return [] if attempt.stopping is None else [KILL]


def _closing(attempt: Attempt, event: ManagerClosing, now: float) -> Actions:
    """Leave a detached process to the next manager of the journal. Stop any other; it gets no further attempt."""
    attempt.final = True
    task = attempt.task
    if not task.detach or attempt.stopping is not None or not (attempt.identity or attempt.adopted):
        return _stop(attempt, State.CANCELLED, now)
    attempt.phase = Phase.ENDED
    left = TaskDetached(f"{task!r} runs on without this manager; open its journal to take it over")
    return [CollectOutput(), FreeSlot(), CloseProcess(leave=True), Finish(State.LOST, None, left)]


def _closed(attempt: Attempt, event: ManagerClosed, now: float) -> Actions:
    attempt.final = True
    if attempt.outcome is not None and attempt.stopping is not State.EXPIRED:
        attempt.phase = Phase.EXITED
        return [OpenOutcome()]
    return _finish(attempt, attempt.stopping or State.LOST, None, attempt.error)


# -- the end of the process ------------------------------------------------------------------------------------


def _exited(attempt: Attempt, event: Exited, now: float) -> Actions:
    """End the attempt with the launched process; if that is a wrapper, kill the task's process behind it."""
    attempt.phase, attempt.exited = Phase.EXITED, event
    actions: Actions = [SetExit(event)]
    # If its zygote has ended, a detached process has no exit status and may still run: do not kill it.
    lost = attempt.task.detach and not attempt.adopted and _exit_unknown(attempt)
    if attempt.own is not None and not lost:
        actions.append(Signal(signal.SIGKILL, SignalTarget.OWN))
    return [*actions, *([ReadFiles()] if attempt.task.detach else _wait_or_conclude(attempt, now))]


def _descendants_left(attempt: Attempt, event: DescendantsLeft, now: float) -> Actions:
    """Kill the descendants of a process that ended by itself. In a stop they have the rest of the grace period."""
    return [KillDescendants()]


def _exit_unseen(attempt: Attempt, now: float) -> Actions:
    """End the attempt without an exit code: no launcher will report it."""
    attempt.phase = Phase.EXITED
    return _no_more_waiting(attempt, now)


def _files(attempt: Attempt, event: FilesRead, now: float) -> Actions:
    """Use the outcome and the exit that a detached process has written, unless they are known."""
    actions: Actions = []
    if attempt.outcome is None and event.outcome is not None:
        attempt.outcome = event.outcome
        actions.append(WriteRecord(JournalEntry.OUTCOME))
    if attempt.phase is not Phase.EXITED:
        return actions
    if event.exited is not None and _exit_unknown(attempt):
        attempt.exited = event.exited
        actions.append(SetExit(event.exited))
    return [*actions, *_wait_or_conclude(attempt, now)]


def _exit_unknown(attempt: Attempt) -> bool:
    exited = attempt.exited
    return exited is None or (exited.exit_code is None and exited.signal is None)


def _wait_or_conclude(attempt: Attempt, now: float) -> Actions:
    """Wait for a result, or for the exit file of an adopted process, if it may still arrive."""
    unexpected = attempt.outcome is None and attempt.stopping is None and not attempt.task.argv
    result_may_come = unexpected and attempt.identity is not None
    file_may_come = attempt.adopted and _exit_unknown(attempt)
    if (result_may_come or file_may_come) and not attempt.waited:
        return [SetDeadline(Deadline.RESULT, now + RESULT_GRACE_S)]
    return _conclude(attempt, now)


def _no_result(attempt: Attempt, event: Deadline, now: float) -> Actions:
    return _no_more_waiting(attempt, now)


def _no_more_waiting(attempt: Attempt, now: float) -> Actions:
    attempt.waited = True
    return [ReadFiles()] if attempt.task.detach else _conclude(attempt, now)


def _conclude(attempt: Attempt, now: float) -> Actions:
    """Decide how the attempt ended: by its result unless it expired, else by how the process ended."""
    if attempt.outcome is not None and attempt.stopping is not State.EXPIRED:
        return [OpenOutcome()]
    return _retry_or_finish(attempt, *_verdict(attempt), now)


def _opened(attempt: Attempt, event: OutcomeOpened, now: float) -> Actions:
    state = State.DONE if event.error is None else State.FAILED
    actions = _retry_or_finish(attempt, state, event.value, event.error, now)
    if attempt.identity is None and attempt.stopping is None:  # Adopted, unproven: PROVING cannot become DONE.
        actions.insert(0, SetState(State.RUNNING, attempt.proven_at))
    return actions


def _verdict(attempt: Attempt) -> tuple[State, Any, BaseException | None]:
    """Return state, value and error of an attempt without a result. Three cases: stopped; a command; it died."""
    exit_code, number = (None, None) if attempt.exited is None else attempt.exited[1:3]
    if attempt.stopping is not None and attempt.stopping is not State.FAILED:
        return attempt.stopping, None, None
    if attempt.stopping is None and exit_code == 0 and attempt.identity is not None and attempt.task.argv:
        return State.DONE, 0, None
    lost = attempt.stopping is None and _exit_unknown(attempt)
    detail = "it ended with its manager or while there was none" if lost and attempt.abandoned else ""
    died = attempt.error or WorkerDied(attempt.pid, exit_code, number, detail)
    # How an abandoned process ended is unknown: the task may be tried again if retries are left.
    retried = attempt.abandoned and attempt.number <= attempt.task.retries
    return State.LOST if lost and not retried else State.FAILED, None, died


# -- the end of the attempt ------------------------------------------------------------------------------------


def _retry_or_finish(attempt: Attempt, state: State, value: Any, error: BaseException | None, now: float) -> Actions:
    """Requeue the task if its policy allows another attempt, else finish it."""
    task = attempt.task
    ran = None if attempt.identity is None else now - attempt.proven_at
    # A task that was cancelled under an earlier manager gets no further attempt either.
    wanted = not (attempt.final or attempt.stopping is State.CANCELLED or task._last_attempt)
    try:
        delay = task._retry_policy.delay(state, error, attempt=attempt.number, ran=ran, now=now) if wanted else None
    except RestartedTooOften as often:
        return _finish(attempt, State.FAILED, None, often)
    if delay is None:
        return _finish(attempt, state, value, error)
    return _requeue(attempt, Requeue(delay, state=state, error=error))


def _finish(attempt: Attempt, state: State, value: Any, error: BaseException | None) -> Actions:
    attempt.phase = Phase.ENDED
    return [
        CollectOutput(),
        WriteRecord(JournalEntry.ENDED, state, value, error),
        FreeSlot(),
        CloseProcess(),
        Finish(state, value, error),
    ]


def _requeue(attempt: Attempt, requeue: Requeue) -> Actions:
    attempt.phase = Phase.ENDED
    attempt.counted = requeue.counted
    return [CollectOutput(), WriteRecord(JournalEntry.REQUEUED), FreeSlot(), CloseProcess(), requeue]


# -- recovery: `replay` drops the actions of the recorded events, so the task is still WAITING at each of these -------


def _adopted(attempt: Attempt, event: Adopted, now: float) -> Actions:
    """Continue with a process of an earlier manager. Its expiry is measured from its proof."""
    attempt.launched, attempt.own = event.launched, event.own
    actions: Actions = [SetState(State.RUNNING, attempt.proven_at), ReadFiles()]
    if attempt.stopping is None:
        return [*actions, *_expiry(attempt, attempt.proven_at)]
    kill = SetDeadline(Deadline.KILL, now + attempt.timeouts.grace)
    return [*actions, SetState(State.STOPPING, now), _stop_signal(attempt), kill]


def _unverified(attempt: Attempt, event: AdoptedUnverified, now: float) -> Actions:
    attempt.identity = attempt.launched = attempt.own = None
    if attempt.stopping is None:
        attempt.phase = Phase.PROVING
    state = State.PROVING if attempt.stopping is None else State.STOPPING
    until = now + attempt.timeouts.hello
    return [SetState(State.LAUNCHING, now), SetState(state, now), ReadFiles(), SetDeadline(Deadline.HELLO, until)]


def _gone_early(attempt: Attempt, event: ProcessGone, now: float) -> Actions:
    """Requeue the task: no user code has run, so the attempt does not count."""
    return _requeue(attempt, Requeue(counted=False))


def _gone(attempt: Attempt, event: ProcessGone, now: float) -> Actions:
    attempt.abandoned = True
    return [SetState(State.RUNNING, attempt.proven_at), *_exit_unseen(attempt, now)]


def _gone_stopping(attempt: Attempt, event: ProcessGone, now: float) -> Actions:
    assert attempt.stopping is not None
    if attempt.identity is not None:
        first, *rest = _gone(attempt, event, now)
        return [first, SetState(State.STOPPING, now), *rest]
    died = WorkerDied(None, None, None, "its process never proved itself")
    error = died if attempt.stopping is State.FAILED else None
    shown: Actions = [SetState(State.LAUNCHING, now), SetState(State.STOPPING, now)]
    return [*shown, *_finish(attempt, attempt.stopping, None, error)]


_Step: TypeAlias = Callable[[Any, Any, float], Actions]


def _row(*functions: _Step | None) -> Mapping[Phase, _Step]:
    phases = (Phase.LAUNCHING, Phase.PROVING, Phase.RUNNING, Phase.STOPPING, Phase.EXITED)
    return {phase: function for phase, function in zip(phases, functions, strict=True) if function is not None}


# In the phase ENDED every event is ignored.
# fmt: off
TABLE: Final[Mapping[type | Deadline, Mapping[Phase, _Step]]] = {
    #                       LAUNCHING       PROVING         RUNNING         STOPPING            EXITED
    Admitted:          _row(_admit,         None,           None,           None,               None),
    LaunchAccepted:    _row(_stop_siblings, None,           None,           None,               None),
    LaunchDeclined:    _row(_declined,      None,           None,           None,               None),
    LaunchInvalid:     _row(_fail_invalid,  None,           None,           None,               None),
    LaunchFailed:      _row(_launch_failed, _launch_failed, _launch_failed, _launch_failed,     None),
    Launched:          _row(_launched,      None,           None,           _launched_late,     None),
    HelloReceived:     _row(_keep_hello,    _check_hello,   _check_hello,   _check_hello,       None),
    Proven:            _row(None,           _proven,        _proven_again,  _proven_late,       None),
    ProofRefused:      _row(_refuse,        _refuse,        _refuse,        _refuse,            _refuse),
    ProgressReceived:  _row(_progress,      _progress,      _progress,      _progress,          _progress),
    ResultReceived:    _row(_result,        _result,        _result,        _result,            _result),
    DescendantsLeft:   _row(_descendants_left, _descendants_left, _descendants_left, None,      None),
    Exited:            _row(_exited,        _exited,        _exited,        _exited,            None),
    FilesRead:         _row(None,           _files,         _files,         _files,             _files),
    OutcomeOpened:     _row(None,           None,           None,           None,               _opened),
    CancelRequested:   _row(_cancel,        _cancel,        _cancel,        _cancel,            _cancel),
    FailRequested:     _row(_fail,          _fail,          _fail,          _fail,              _fail),
    ManagerClosing:    _row(_closing,       _closing,       _closing,       _closing,           _closing),
    ManagerClosed:     _row(_closed,        _closed,        _closed,        _closed,            _closed),
    Deadline.HELLO:    _row(None,           _no_hello,      None,           _no_hello_stopping, None),
    Deadline.EXPIRY:   _row(None,           None,           _expired,       None,               None),
    Deadline.LINGER:   _row(None,           None,           _linger_over,   None,               None),
    Deadline.KILL:     _row(None,           None,           None,           _kill,              _kill),
    Deadline.RESULT:   _row(None,           None,           None,           None,               _no_result),
    Adopted:           _row(None,           None,           _adopted,       _adopted,           None),
    AdoptedUnverified: _row(None,           None,           _unverified,    _unverified,        None),
    ProcessGone:       _row(_gone_early,    _gone_early,    _gone,          _gone_stopping,     None),
}
# fmt: on
