"""The attempts of one manager: gathers their events, and executes the actions that `lifecycle.step` returns."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import resource
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from doorman._scheduler import lifecycle
from doorman._scheduler.attempt import Attempt, Timeouts, launch_request
from doorman._scheduler.handshake import Handshake
from doorman._scheduler.lifecycle import Action, CancelRequested, Deadline, Event, FailRequested, step
from doorman._scheduler.output import Streams
from doorman._scheduler.request_queue import RequestQueue
from doorman._scheduler.run_queue import RunQueue
from doorman.cores import available_cores
from doorman.errors import JournalError, LaunchRefused
from doorman.identity import Credential
from doorman.launcher import Event as Report
from doorman.launcher import Exited, Launched, Launcher
from doorman.load import SAMPLE_INTERVAL_S
from doorman.states import State
from remit._internal import DeadlineHeap

if TYPE_CHECKING:
    from doorman.journal.recorder import Recorder
    from doorman.task import OnProgress, Task

logger = logging.getLogger("doorman")

MANY_PER_CORE: Final = 16
"""A manager without rules logs a warning once it has more processes than this for each core."""
AT_ONCE: Final = 64
"""Most processes between launch and proof: more would only delay each other."""
DESCRIPTORS: Final = 5
"""Descriptors that a process may need in the manager until its proof: two pidfds, two pipes and its connection."""
SPARE_DESCRIPTORS: Final = 16
"""Descriptors reserved for the rest of the program."""
_ALONE: Final = {signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT}
"""Signals that no SIGCONT follows."""
DEADLINES: Final = len(Deadline)
ENDED: Final = 1024
"""Number of ended attempts whose credentials are kept: their late hellos are answered with ``die``."""


class Supervisor:
    """The attempts of one manager. What changes them is a request of one queue.

    After an interrupt, such as Ctrl-C, the next tick continues where it occurred: a step is repeated, an action too.
    So an action may be executed twice. The indexes are derived from the attempts, and then rebuilt.
    """

    def __init__(
        self,
        launcher: Launcher,
        run_queue: RunQueue,
        recorder: Recorder,
        output: Streams,
        handshake: Handshake,
        *,
        timeouts: Timeouts,
        payload: tuple[bytes, bytes],
        on_progress: OnProgress | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._launcher = launcher
        self._run_queue = run_queue
        self._recorder = recorder
        self._output = output
        self._handshake = handshake
        self.timeouts: Final = timeouts
        self._payload = payload
        self._on_progress = on_progress
        self._clock = clock
        self._attempts: dict[str, Attempt] = {}
        self._by_task: dict[Task, Attempt] = {}
        self._by_handler: dict[str, dict[Attempt, None]] = {}
        self._unproven: set[Attempt] = set()
        self._ended: dict[str, Credential] = {}
        self._cancel_when: dict[Task, None] = {}
        self._deadlines: DeadlineHeap[tuple[Deadline, str]] = DeadlineHeap(lambda key: key[1] in self._attempts)
        self._reports: deque[Report] = deque()
        self._exits: dict[Attempt, Exited] = {}
        self.requests = RequestQueue(self._repair)
        self._cores = available_cores()  # Here: it reads several files.
        self._many_reported = False
        self._again = False  # Whether an interrupt occurred in the current action before.
        handshake.open(self)

    def __len__(self) -> int:
        return len(self._attempts)

    @property
    def attempts(self) -> Iterable[Attempt]:
        """The attempts that have not ended."""
        return self._attempts.values()

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that have an attempt."""
        return tuple(self._by_task)

    def has(self, task: Task) -> bool:
        """Return whether a task was added and has not ended."""
        return task in self._by_task or self._run_queue.has(task)

    @property
    def room(self) -> int:
        """Number of processes that may be launched now."""
        return AT_ONCE - len(self._unproven)

    def attempt(self, attempt_id: object) -> Attempt | None:
        """Return the attempt with an id, which any peer may have sent; None if there is none."""
        return self._attempts.get(attempt_id) if isinstance(attempt_id, str) else None

    def attempt_of(self, task: Task) -> Attempt | None:
        """Return the current attempt of a task."""
        return self._by_task.get(task)

    def ended_credential(self, attempt_id: object) -> Credential | None:
        """Return the revoked credential of one of the last ENDED attempts that have ended."""
        return self._ended.get(attempt_id) if isinstance(attempt_id, str) else None

    def next_timeout(self, most: float) -> float:
        """Return the seconds until the next deadline or poll of a `cancel_when`, ``most`` at the most."""
        if self._cancel_when:
            most = min(most, SAMPLE_INTERVAL_S)  # Nothing reports that a `cancel_when` has another answer.
        if self.requests.pending or self._reports or self._exits:
            return 0.0
        return self._deadlines.next_timeout(self._clock(), most)

    def gather(self) -> None:
        """Execute what follows from the events since the last call, and what an interrupt has left."""
        self.requests.run()
        # One line: an interrupt before it or after it loses no report.
        self._reports.extend(self._launcher.poll())
        self.requests.guard(self._queue_reports)
        self.requests.run()
        # Before the exits: a message that a process sent before its end counts.
        self._handshake.receive()
        self.requests.guard(self._queue_exits)
        self.requests.run()
        self._output.read()
        self.requests.guard(self._queue_deadlines)
        self.requests.run()

    def _queue_reports(self) -> None:
        while self._reports:
            report = self._reports[0]
            attempt = self._attempts.get(report.attempt)
            if attempt is None:
                if isinstance(report, Launched):  # Its launch was interrupted, and the attempt has ended.
                    report.process.signal_tree(signal.SIGKILL)
                    report.process.close()
            elif isinstance(report, Exited):
                self._exits[attempt] = report
            else:
                self.requests.append(_Step(self, attempt, report))
            self._reports.popleft()

    def _queue_exits(self) -> None:
        for attempt, exited in tuple(self._exits.items()):
            self.requests.append(_Step(self, attempt, exited))
            del self._exits[attempt]

    def _queue_deadlines(self) -> None:
        for deadline, attempt_id in self._deadlines.pop_due(self._clock()):
            attempt = self._attempts.get(attempt_id)
            if attempt is not None:
                self.requests.append(_Step(self, attempt, deadline))

    def handle(self, attempt: Attempt, event: Event) -> None:
        """Execute the actions that follow from an event; later, if the call is nested in another change."""
        self.requests.put(_Step(self, attempt, event))

    def start(self) -> None:
        """Start the tasks that the run queue admits."""
        admitted = self._run_queue.admit(self.attempts, self.room)
        try:
            while (item := self.requests.guard(next, admitted, None)) is not None:
                queued, error = item
                self.requests.run()  # A `can_run` may have cancelled a task.
                if not self._run_queue.has(queued.task):
                    continue
                if error is not None:
                    self.fail(queued.task, error)
                elif self._attempts and not _descriptors_left(
                    (len(self._unproven) + 1) * DESCRIPTORS + SPARE_DESCRIPTORS
                ):
                    self._run_queue.hold("few descriptors are left to this process: raise its hard limit, `ulimit -Hn`")
                else:
                    number = queued.task.attempt + 1
                    attempt = Attempt(queued.task, queued.call, number, self.timeouts, queued.turn)
                    self.handle(attempt, lifecycle.Admitted())
        finally:
            # Immediately: a traceback could keep it suspended, and its `finally` restores the queue.
            self.requests.guard(admitted.close)
        if not self._many_reported and len(self._attempts) > MANY_PER_CORE * self._cores:
            self._many_reported = True
            if not len(self._run_queue.rules):
                logger.warning(
                    "%d processes run at a time and %d tasks wait, since the manager has no rule: "
                    "limit them, as by manager.add_rule(Rule(processes=%d))",
                    len(self._attempts),
                    len(self._run_queue),
                    self._cores,
                )

    def now(self) -> float:
        """Return the monotonic time of the manager's clock."""
        return self._clock()

    def restore(self, attempt: Attempt, event: Event) -> None:
        """Continue an attempt of an earlier manager; ``event`` is the fate of its process."""
        self._run_queue.take_slot(attempt)
        self._register(attempt)
        self.handle(attempt, event)

    def add(self, task: Task, call: bytes) -> None:
        """Add a task to the run queue. Raises JournalError."""
        # In this order: once it is added, a request places it, even if an interrupt occurs in between.
        self.requests.append(self._place_added)
        self._run_queue.added[task] = call
        try:
            self.requests.run()
        except JournalError:
            self._run_queue.added.pop(task, None)
            raise

    def _place_added(self, again: bool) -> None:
        for task, call in tuple(self._run_queue.added.items()):
            self._recorder.added(task, call)
            if task.cancel_when is not None:
                self._cancel_when[task] = None  # Called in each tick.
            self._run_queue.add(task, call)

    def call_cancel_when(self) -> None:
        """Cancel the tasks whose `cancel_when` is true; fail those whose `cancel_when` raises."""
        for task in list(self._cancel_when):
            try:
                due = task.cancel_when is not None and bool(task.cancel_when())
            except Exception as error:  # noqa: BLE001 - the function of one task must not stop the others
                self.fail(task, error)
                continue
            if due:
                self.cancel(task)

    def end_dependents(self) -> None:
        """Cancel the waiting tasks that depend on a task which failed."""
        for task, error in self.requests.guard(lambda: list(self._run_queue.release_dependents())):
            self._end(task, CancelRequested(), State.CANCELLED, error)

    def cancel(self, task: Task) -> bool:
        """Stop a running task or remove a waiting one; False if it has ended."""
        return self._end(task, CancelRequested(), State.CANCELLED, None)

    def fail(self, task: Task, error: Exception) -> None:
        """Stop a running task or remove a waiting one, since a function of its policy raised."""
        self._end(task, FailRequested(error), State.FAILED, error)

    def kill(self) -> None:
        """Send SIGKILL to all processes."""
        for attempt in self.attempts:
            self._signal(attempt, lifecycle.KILL)

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to the processes of all tasks and their descendants."""
        for attempt in self.attempts:
            self._signal(attempt, lifecycle.Signal(number, lifecycle.SignalTarget.TASK))

    def handle_all(self, event: Event) -> None:
        """Execute the actions that follow from an event for each attempt."""
        for attempt in tuple(self.attempts):
            self.requests.append(_Step(self, attempt, event))
        self.requests.run()

    def _end(self, task: Task, event: Event, state: State, error: Exception | None) -> bool:
        known = self.has(task)
        if known:
            self.requests.put(functools.partial(self._end_task, task, event, state, error))
        return known

    def _end_task(self, task: Task, event: Event, state: State, error: Exception | None, again: bool) -> None:
        self._cancel_when.pop(task, None)
        attempt = self._by_task.get(task)
        if attempt is not None:
            self.requests.append(_Step(self, attempt, event))
        elif self._run_queue.remove(task) or again:
            if not task.done():
                self._recorder.ended(task, state, None, error)
            task._finish(state, error=error, again=again)

    def _repair(self) -> None:
        """Rebuild what is derived from the attempts and the waiting tasks."""
        attempts = tuple(self._attempts.values())
        self._by_task = {attempt.task: attempt for attempt in attempts}
        self._by_handler = {}
        for attempt in attempts:
            self._by_handler.setdefault(attempt.handler, {})[attempt] = None
            for deadline, at in attempt.due.items():
                self._deadlines.schedule(at, (deadline, attempt.id))  # One that has passed is ignored.
        self._unproven = {attempt for attempt in attempts if attempt.identity is None and not attempt.adopted}
        self._run_queue.rebuild(attempts)
        if self._run_queue.added:
            self.requests.append(self._place_added)

    def perform(self, attempt: Attempt, action: Action, *, again: bool) -> None:
        """Execute an action; ``again`` if an interrupt has ended its first execution."""
        self._again = again
        _PERFORM[type(action)](self, attempt, action)

    def _show(self, task: Task, state: State) -> None:
        if not (self._again and task.state is state):
            task._set_state(state)
        elif task._future is not None:
            task._future._update()

    def _take_slot(self, attempt: Attempt, _: lifecycle.TakeSlot) -> None:
        task = attempt.task
        self._run_queue.remove(task)
        self._run_queue.take_slot(attempt)
        self._register(attempt)
        self._unproven.add(attempt)
        task.attempt, task.progress = attempt.number, None
        self._show(task, State.LAUNCHING)

    def _register(self, attempt: Attempt) -> None:
        self._attempts[attempt.id] = self._by_task[attempt.task] = attempt
        self._by_handler.setdefault(attempt.handler, {})[attempt] = None

    def _launch(self, attempt: Attempt, _: lifecycle.Launch) -> None:
        event: Event
        if self._again:
            # Nothing shows whether the launcher has the request. If it has, the process is killed once it is reported.
            self.handle(attempt, lifecycle.LaunchDeclined("its launch was interrupted"))
            return
        try:
            with contextlib.closing(self._output.open(attempt.task, attempt.id)) as outputs:
                files = self._recorder.files_of(attempt)
                self._launcher.launch(launch_request(attempt, self._payload, outputs, files))
            event = lifecycle.LaunchAccepted()
        except LaunchRefused as error:
            event = lifecycle.LaunchDeclined(str(error))
        except (OSError, ValueError) as error:  # Such as a wrapper with words that are not valid text.
            event = lifecycle.LaunchInvalid(error)
        self.handle(attempt, event)

    def _signal(self, attempt: Attempt, action: lifecycle.Signal) -> None:
        """Signal through pidfds only: unlike pids they are never reused.

        TASK signals no wrapper while the task's process runs: the wrapper's exit would end the grace period.
        """
        launched, own = attempt.launched, attempt.own
        signals = [action.number] if action.number in _ALONE else [action.number, signal.SIGCONT]
        if action.target is lifecycle.SignalTarget.TASK and own is not None and own.signal_tree(*signals, group=False):
            return
        for process in (own,) if action.target is lifecycle.SignalTarget.OWN else (launched, own):
            if process is not None:
                process.signal_tree(*signals)
        if action == lifecycle.KILL:
            self._launcher.kill(attempt.id)  # It also knows descendants whose parents have ended.

    def _stop_siblings(self, attempt: Attempt, _: lifecycle.StopSiblings) -> None:
        for sibling in tuple(self._by_handler.get(attempt.handler, ())):
            if sibling.task is not attempt.task:
                self.handle(sibling, CancelRequested())

    def _set_state(self, attempt: Attempt, action: lifecycle.SetState) -> None:
        task = attempt.task
        if action.state is State.RUNNING:
            task.identity = attempt.identity
            self._unproven.discard(attempt)
            self._run_queue.end_hold()
        self._show(task, action.state)
        if action.state is State.RUNNING:
            task._set_started(action.at)

    def _set_deadline(self, attempt: Attempt, action: lifecycle.SetDeadline) -> None:
        attempt.due[action.deadline] = action.at
        self._deadlines.schedule(action.at, (action.deadline, attempt.id))

    def _report_progress(self, attempt: Attempt, action: lifecycle.ReportProgress) -> None:
        if not self._again:  # A listener that raises SystemExit would do so each time.
            attempt.task._report_progress(action.progress, self._on_progress)

    def _set_exit(self, attempt: Attempt, action: lifecycle.SetExit) -> None:
        task = attempt.task
        task.exit_code, task.signal, task.max_rss = action.exited[1:4]

    def _open_outcome(self, attempt: Attempt, _: lifecycle.OpenOutcome) -> None:
        assert attempt.outcome is not None
        self.handle(attempt, lifecycle.OutcomeOpened(*attempt.outcome.unpickle()))

    def _free_slot(self, attempt: Attempt, _: lifecycle.FreeSlot) -> None:
        self._attempts.pop(attempt.id, None)
        self._by_task.pop(attempt.task, None)
        siblings = self._by_handler.get(attempt.handler, {})
        siblings.pop(attempt, None)
        if not siblings:
            self._by_handler.pop(attempt.handler, None)
        self._unproven.discard(attempt)
        self._run_queue.free_slot(attempt)
        self._deadlines.compact(DEADLINES * len(self._attempts))

    def _close_process(self, attempt: Attempt, action: lifecycle.CloseProcess) -> None:
        attempt.credential.revoked = True
        for process in (attempt.launched, attempt.own):
            if process is not None:
                process.close()
        if not action.leave:
            self._ended[attempt.id] = attempt.credential
            if len(self._ended) > ENDED:
                del self._ended[next(iter(self._ended))]
            self._recorder.remove_files(attempt)

    def _requeue(self, attempt: Attempt, action: lifecycle.Requeue) -> None:
        task = attempt.task
        if action.counted:
            assert action.state is not None
            if not (self._again and task.state is State.WAITING):
                task._retry(action.state, action.error, action.delay)
            self._run_queue.delay(task, attempt.call, action.delay)
            return
        task.attempt = attempt.number - 1
        if task.state is not State.WAITING:
            task._set_state(State.WAITING)
        self._run_queue.requeue(task, attempt.call, attempt.turn)
        if action.why is not None:
            self._run_queue.hold(action.why)

    def _finish(self, attempt: Attempt, action: lifecycle.Finish) -> None:
        self._cancel_when.pop(attempt.task, None)
        attempt.task._finish(action.state, action.value, action.error, again=self._again)


class _Step:
    """The request to step an attempt by an event, and to execute the actions that follow."""

    __slots__ = ("_attempt", "_begun", "_done", "_event", "_saved", "_supervisor", "actions")

    def __init__(self, supervisor: Supervisor, attempt: Attempt, event: Event) -> None:
        self._supervisor, self._attempt, self._event = supervisor, attempt, event
        self.actions: list[Action] | None = None  # None before the step.
        self._saved: Any = None  # The state of the attempt before the step.
        self._begun = self._done = 0  # Numbers of actions.

    def __call__(self, again: bool) -> None:
        supervisor, attempt, fault = self._supervisor, self._attempt, None
        if self.actions is None:
            if self._saved is not None:
                attempt.restore(self._saved)
            self._saved = attempt.snapshot()
            # The assignment commits the step.
            self.actions = step(attempt, self._event, supervisor.now())
        while self._done < len(self.actions):
            begun, self._begun = self._begun, self._done + 1
            try:
                supervisor.perform(attempt, self.actions[self._done], again=begun > self._done)
            except Exception as error:  # raised below: the decided actions are executed all the same
                if begun <= self._done and not isinstance(error, JournalError):
                    raise  # It may be that of a signal handler: the queue calls this request again.
                fault = fault or error
                if isinstance(error, JournalError):
                    # The manager has to end now. What must not happen without its record is dropped.
                    rest = self.actions[self._done + 1 :]
                    self.actions[self._done + 1 :] = [each for each in rest if not isinstance(each, _NEEDS_RECORD)]
            self._done += 1
        if fault is not None:
            raise fault


_NEEDS_RECORD: Final = (lifecycle.TakeSlot, lifecycle.Launch, lifecycle.Reply)
_PERFORM: Final[dict[type, Callable[[Supervisor, Attempt, Any], None]]] = {
    lifecycle.WriteRecord: lambda self, attempt, action: self._recorder.write(attempt, action),
    lifecycle.TakeSlot: Supervisor._take_slot,
    lifecycle.Launch: Supervisor._launch,
    lifecycle.StopSiblings: Supervisor._stop_siblings,
    lifecycle.VerifyHello: lambda self, attempt, action: self.handle(
        attempt, self._handshake.verify(attempt, action.hello, action.sender)
    ),
    lifecycle.Challenge: lambda self, attempt, action: self._handshake.challenge(attempt, action.sender),
    lifecycle.Reply: lambda self, attempt, action: self._handshake.reply(
        attempt.credential, action.word, action.sender
    ),
    lifecycle.CountRefusal: lambda self, _, action: self._handshake.refused.update([action.reason]),
    lifecycle.Signal: Supervisor._signal,
    lifecycle.KillDescendants: lambda self, attempt, _: self._launcher.kill(attempt.id),
    lifecycle.SetDeadline: Supervisor._set_deadline,
    lifecycle.SetState: Supervisor._set_state,
    lifecycle.SetExit: Supervisor._set_exit,
    lifecycle.ReportProgress: Supervisor._report_progress,
    lifecycle.ReadFiles: lambda self, attempt, _: self.handle(
        attempt, lifecycle.FilesRead(*self._recorder.read_files(attempt))
    ),
    lifecycle.OpenOutcome: Supervisor._open_outcome,
    lifecycle.CollectOutput: lambda self, attempt, _: self._output.finish_attempt(attempt.id),
    lifecycle.FreeSlot: Supervisor._free_slot,
    lifecycle.CloseProcess: Supervisor._close_process,
    lifecycle.Requeue: Supervisor._requeue,
    lifecycle.Finish: Supervisor._finish,
}


def _descriptors_left(count: int) -> bool:
    """Return whether ``count`` more descriptors can be opened, estimated from the lowest free one."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    try:
        lowest = os.open("/", os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return False
    os.close(lowest)
    return most == resource.RLIM_INFINITY or lowest + count <= most
