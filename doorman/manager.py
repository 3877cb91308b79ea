"""Manager: what is wanted and what exists; each tick hears, ends what is over, and admits what may start."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import cloudpickle
import msgspec

from doorman.attempt import Attempt
from doorman.errors import LaunchRefused, TaskDetached, TaskNotPicklable, WorkerDied
from doorman.journal.journal import Journal
from doorman.journal.recorder import Recorder
from doorman.journal.recovery import Recovery
from doorman.launcher import Event, Exited, Launched, Launcher, LaunchFailed, Order
from doorman.launcher.inherited import InheritingLauncher
from doorman.launcher.zygote import ZygoteLauncher
from doorman.load import SAMPLE
from doorman.output.logs import Logs
from doorman.output.stream import Streams
from doorman.owner import Owner
from doorman.policy.admission import Admission
from doorman.policy.lanes import Entry
from doorman.reception import Reception
from doorman.rules import Rule
from doorman.running import Due, Running
from doorman.states import State
from doorman.task import OnOutput, OnProgress, Task, check_listeners
from doorman.worker import Work
from remit import Location, Server
from remit.config import resolve
from remit.errors import ReentrantTick
from remit.plugins import find_transport

__all__ = ["ProcessManager"]

GRACE: Final = 3.0
"""Seconds between SIGTERM and SIGKILL."""
HELLO_TIMEOUT: Final = 30.0
"""Seconds within which a process must have proven that it is its task's."""
LAST_WORDS: Final = 0.5
"""Seconds for which the result of a process that died unexpectedly may still be under way."""
AT_ONCE: Final = 64
"""Processes that may be on their way from launch to proof: more only make each other wait."""
BURIAL: Final = 5.0
"""Seconds that leaving a manager waits beyond the grace for what it killed."""


class ProcessManager(Owner):
    """Runs tasks in processes of their own, each proven to be its task's before the task's code begins.

    ``location`` is where the processes speak to the manager: a Remit location that crosses processes, a `Server` that
    is open on one and stays yours, or None for a private one on the configured transport. Nothing happens but in
    `tick`, `run` and `Task.result`, in the caller's thread.

    launcher -- starts the processes; default: a warm zygote that forks them
    rules -- may a task start now; without rules all start at once
    preload -- modules that the zygote imports once for all tasks
    initializer -- called without arguments in each process before its task's code; if it raises, so does the task
    log_path -- a folder with a file for each task's output and errors; None: the manager's own
    journal -- a file that survives the manager, or a `Journal`; `recovered` is what the manager before it left
    shared_log -- there one ``stdout.log`` and one ``stderr.log`` instead, to which all tasks append
    on_output -- called with a task, ``"stdout"`` or ``"stderr"``, and each line that any task writes
    on_progress -- called with a task and each `Progress` that any task reports
    grace -- seconds between SIGTERM and SIGKILL
    hello_timeout -- seconds within which a process must have proven itself

    Leaving the manager's block stops what still runs; `run` is how one waits.
    Raises LocationError, PluginError, JournalError, TaskNotPicklable.
    """

    def __init__(
        self,
        location: str | Location | Server | None = None,
        *,
        launcher: Launcher | None = None,
        rules: Iterable[Rule] = (),
        preload: Sequence[str] = (),
        initializer: Callable[[], object] | None = None,
        log_path: str | os.PathLike[str] | None = None,
        journal: str | os.PathLike[str] | Journal | None = None,
        shared_log: bool = False,
        on_output: OnOutput | None = None,
        on_progress: OnProgress | None = None,
        grace: float = GRACE,
        hello_timeout: float = HELLO_TIMEOUT,
    ) -> None:
        super().__init__()
        check_listeners(on_output=on_output, on_progress=on_progress)
        self._initializer = b"" if initializer is None else _pickled(initializer)
        self._logs = Logs(log_path, shared=shared_log)
        self._recorder = Recorder(journal)
        self._admission = Admission(rules)
        self._running = Running(grace=grace)
        self._hello_timeout = hello_timeout
        self.leaving = grace + BURIAL
        self._watched: dict[Task, None] = {}
        self._closed = self._ticking = False
        self._owner = os.getpid()
        self._events: deque[Event] = deque()
        self._shares = isinstance(location, Server)
        with contextlib.ExitStack() as undone:
            undone.callback(self._recorder.close)
            where = _place(location, self._recorder)
            # The zygote first: it must be exec'd before a transport starts threads here.
            self._launcher: Launcher = launcher or _zygote(where, preload)
            undone.callback(self._launcher.close, 0.0)
            self.server = location if isinstance(location, Server) else Server(where)
            undone.pop_all()
        inheriting = InheritingLauncher(self._launcher) if self._recorder.journal is not None else None
        self._launcher = inheriting or self._launcher
        self._streams = Streams(self._logs, self._launcher, on_output)
        self._pickled_location = pickle.dumps(self.server.location)
        self._running.stopped = self._recorder.stopped
        self._reception = Reception(self.server, self._running, self._conclude, self._recorder, on_progress)
        self.rules = self._admission.rules
        self.refused = self._reception.refused
        """Hellos and results that were not believed, and processes that never proved themselves, by reason."""
        self.recovered: tuple[Task, ...] = ()
        """What the journal told of when it was opened, in the order in which it was added."""
        if self._recorder.journal is not None and inheriting is not None:
            self._recover(self._recorder.journal, inheriting)

    # -- for those who want ------------------------------------------------------------------------------------

    def add_task(self, task: Task) -> Task:
        """Want a task; it starts in a later tick. Raises TaskNotPicklable, TaskAlreadyAdded."""
        if self._closed:
            raise ValueError("this manager is closed")
        call = task.adopt(self)
        self._recorder.added(task, call)
        self._admission.add(task, call)
        if task.cancel_when is not None:
            self._watched[task] = None
        self.changed()
        return task

    @property
    def waiting(self) -> tuple[Task, ...]:
        """The tasks that have no process yet, in the order in which they were added."""
        return self._admission.tasks

    @property
    def running(self) -> tuple[Task, ...]:
        """The tasks that have a process, or are about to."""
        return self._running.tasks

    @property
    def closed(self) -> bool:
        """Whether it runs nothing more."""
        return self._closed

    @property
    def busy(self) -> bool:
        """Whether anything waits or runs."""
        return bool(len(self._admission) or len(self._running))

    def why(self, task: Task) -> str | None:
        """Return what holds a waiting task back as of the last tick, in words with figures; None if nothing does."""
        return self._admission.why(task)

    def emit_to(self, task: Task, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Emit an event to a running task, which hears it by ``current_task().on(name, listener)``; acknowledged.

        Raises ValueError if it does not run, EmitError, CodecError.
        """
        attempt = self._running.of(task)
        if attempt is None or attempt.sender is None:
            raise ValueError(f"{task!r} does not run: there is nobody to hear {name!r}")
        attempt.sender.emit(name, *args, **kwargs)

    def cancel(self, task: Task) -> bool:
        """Drop a waiting task or stop a running one; False, and nothing is signalled, if it has ended."""
        attempt = self._running.of(task)
        if attempt is not None:
            self._stop_for_good(attempt, State.CANCELLED)
        elif self._admission.drop(task):
            self._end(task, State.CANCELLED)
        else:
            return False
        self.changed()
        return True

    def kill(self) -> None:
        """Like `stop`, without any grace: SIGKILL now."""
        self.stop()
        for attempt in self._running:
            attempt.signal(signal.SIGKILL)

    # -- making progress ---------------------------------------------------------------------------------------

    def tick(self) -> bool:
        """Do what can be done now, without waiting; True while anything waits or runs."""
        self.check_turn()
        if self._ticking:
            raise ReentrantTick("tick() was called from a listener: let it return, and wait for tasks outside it")
        self._ticking = True
        try:
            if not self._closed:
                self._recorder.check()
            self._hear_launcher()
            self.server.tick()
            self._do_soon()
            self._streams.read()
            self._keep_time()
            self._ask_for_cancellation()
            self._settle()
            self._admit()
        finally:
            self._ticking = False
        return self.busy

    def wait(self, timeout: float) -> None:
        """Return after ``timeout`` seconds, or earlier if `tick` has something to do."""
        if self._watched:
            timeout = min(timeout, SAMPLE)  # Nobody tells when a question has another answer.
        timeout = self._admission.patience(timeout, full=self._running.unproven >= AT_ONCE)
        at_once = self._soon or self._events or self._streams.pending
        self.server.wait(0.0 if at_once else self._running.patience(timeout), self._streams.waker)

    def close(self) -> None:
        """Stop what runs (TERM, grace, KILL), drop what waits, and end. May be called twice."""
        if self._closed:
            return
        self._closed = True
        if self._owner != os.getpid():
            self._launcher.close(0.0)  # A fork: the tasks and the server are the parent's.
            self._recorder.close()
            self._streams.close()
            return
        self.undrive()
        try:
            self.part()
            self.run_here(self.leaving)
        finally:
            self._launcher.close(BURIAL)
            self._reception.close()
            if not self._shares:
                self.server.close()
            for attempt in self._running:
                self._over(attempt, attempt.stopping or State.LOST, error=attempt.error)
            self._recorder.close()
            self._streams.close()

    def _recover(self, journal: Journal, launcher: InheritingLauncher) -> None:
        """Go on where the manager before this one ended. Raises JournalError."""
        parts = (self._recorder, self._admission, self._running, launcher)
        recovery = Recovery(*parts, over=self._over, patience=self._hello_timeout)
        self.recovered = recovery.run(self, journal.entries())

    def part(self) -> None:
        """Begin to leave: let go of what is detached, and cancel the rest; the journal's next manager has it again."""
        self._recorder.leaving()
        self._let_go()
        self.stop()

    def _let_go(self) -> None:
        """Leave detached processes that are at work to themselves, and to the journal's next manager."""
        for attempt in self._running:
            at_work = attempt.task.identity is not None or attempt.salt
            if attempt.task.detach and at_work and attempt.stopping is None:
                left = TaskDetached(f"{attempt.task!r} runs on without this manager; open its journal to take it over")
                self._running.let_go(attempt)
                self._admission.ended(attempt)
                attempt.task.end(State.LOST, error=left)

    # -- the verbs of a tick -----------------------------------------------------------------------------------

    def _hear_launcher(self) -> None:
        self._events.extend(self._launcher.poll())
        while self._events:  # Kept: who is interrupted in one, as by Ctrl-C, goes on with the next.
            event = self._events.popleft()
            attempt = self._running.named(event.attempt)
            if attempt is None:
                if isinstance(event, Launched):
                    event.process.close()
            elif isinstance(event, Launched):
                self._recorder.launched(attempt, event.process)
                self._running.launched(attempt, event.process, self._hello_timeout)
                self._reception.admit_early(attempt)
            elif isinstance(event, Exited):
                self._exited(attempt, event)
            else:
                self._launch_failed(attempt, event)

    def _exited(self, attempt: Attempt, event: Exited) -> None:
        attempt.exited = event
        task = attempt.task
        task.exit_code, task.signal, task.max_rss = event.exit_code, event.signal, event.max_rss
        unexpected = attempt.outcome is None and attempt.stopping is None and not task.argv
        if (unexpected and task.state is State.RUNNING) or self._recorder.awaits_end(attempt):
            self._running.expect(Due.LAST_WORDS, attempt, LAST_WORDS)
        else:
            self.server.tick()
            self._conclude(attempt)

    def _launch_failed(self, attempt: Attempt, event: LaunchFailed) -> None:
        task = attempt.task
        if event.back_pressure and attempt.stopping is None:
            self._forget(attempt)
            self._streams.end(attempt.id)
            task.enter(State.WAITING)
            task.attempt -= 1
            self._recorder.again(task)
            self._admission.put_back(attempt, f"no process can be started now: {event.why}")
            return
        stopped = attempt.stopping not in (None, State.FAILED)
        error = None if stopped else attempt.error or WorkerDied(None, None, None, event.why)
        self._over(attempt, attempt.stopping or State.FAILED, error=error)

    def _keep_time(self) -> None:
        for due, attempt in self._running.due():
            if due is Due.KILL:
                attempt.signal(signal.SIGKILL)
            elif due is Due.LAST_WORDS:
                self._conclude(attempt)
            elif due is Due.EXPIRY and attempt.outcome is None:
                self._running.stop(attempt, State.EXPIRED)
            elif due is Due.HELLO and attempt.task.identity is None:
                self.refused["no hello in time"] += 1
                if attempt.salt:  # Nobody knows that it is the task's: it is left alone.
                    self._conclude(attempt)
                else:
                    self._running.stop(attempt, State.FAILED)

    def _ask_for_cancellation(self) -> None:
        for task in list(self._watched):
            try:
                cancelled = task.cancel_when is not None and task.cancel_when()
            except Exception as error:  # noqa: BLE001 - a question of one task's must not stop the others
                self._fail(task, error)
                continue
            if cancelled:
                self._watched.pop(task, None)
                self.cancel(task)

    def _settle(self) -> None:
        """Let go on what came after tasks that are done, and end what came after others."""
        for task, error in self._admission.settle():
            self._end(task, State.CANCELLED, error=error)

    def _admit(self) -> None:
        """Start what may start."""
        if len(self._admission) and not self._closed and self._running.unproven < AT_ONCE:
            self._admission.admit(self._running, self._launch, self._fail)

    def _launch(self, entry: Entry) -> bool:
        """Ask for a process; False if no other is to be asked for just now."""
        task = entry.task
        attempt = Attempt(task, entry.call, task.attempt + 1, entry.turn)
        self._recorder.started(attempt)
        try:
            self._order(attempt)
        except LaunchRefused as error:
            self._recorder.again(task)
            self._admission.refused(str(error))
            return False
        except OSError as error:
            self._fail(task, error)
            return True
        self._admission.drop(task)
        self._admission.started(attempt)
        task.attempt = attempt.number
        task.output, task.progress = self._logs.paths(task.name, attempt.id), None
        self._running.add(attempt)
        if task.stops_siblings:
            for sibling in self._running.siblings(task):
                self._stop_for_good(sibling, State.CANCELLED)
        return self._running.unproven < AT_ONCE

    def _order(self, attempt: Attempt) -> None:
        """Order a process. Raises LaunchRefused; OSError if the files of its output cannot be opened."""
        task = attempt.task
        work = Work(
            self._pickled_location,
            task.id,
            task.name,
            attempt.number,
            attempt.call,
            task.wrapper,
            self._initializer,
            task.limits,
        )
        outputs = self._streams.open(task, attempt.id)
        try:
            self._launcher.launch(
                Order(
                    attempt.id,
                    attempt.credential.secret,
                    payload=msgspec.msgpack.encode(work),
                    command=task.argv,
                    env=task.env,
                    cwd=task.cwd,
                    stdout=outputs.stdout,
                    stderr=outputs.stderr,
                    detach=task.detach,
                    record=self._recorder.place_of(attempt),
                )
            )
        except BaseException:
            self._streams.end(attempt.id)
            raise
        finally:
            outputs.close()

    def _stop_for_good(self, attempt: Attempt, ends_as: State) -> None:
        attempt.final = True  # Also if it is being stopped already, for another reason.
        self._running.stop(attempt, ends_as)

    # -- ending ------------------------------------------------------------------------------------------------

    def _conclude(self, attempt: Attempt) -> None:
        """End an attempt whose process has ended."""
        if attempt in self._running:
            self._recorder.recall(attempt)
            self._over(attempt, *attempt.verdict())

    def _over(self, attempt: Attempt, state: State, value: Any = None, error: BaseException | None = None) -> None:
        """End an attempt, and its task with it unless it is to be tried again."""
        try:
            self._streams.end(attempt.id)
        finally:  # Whoever listens may be interrupted, as by Ctrl-C; the attempt is over all the same.
            self._decide(attempt, state, value, error)

    def _decide(self, attempt: Attempt, state: State, value: Any, error: BaseException | None) -> None:
        task = attempt.task
        self._forget(attempt)
        # What was cancelled under the manager before this one is not wanted either, whatever its process still told.
        wanted = not (attempt.final or attempt.stopping is State.CANCELLED or self._closed)
        state, value, error, pause = task.next_try(state, value, error, wanted=wanted)
        if pause is None:
            self._end(task, state, value, error)
        else:
            self._recorder.again(task)
            self._admission.rest(task, attempt.call, pause)
        self._recorder.forget(attempt)

    def _forget(self, attempt: Attempt) -> None:
        self._running.forget(attempt)
        self._admission.ended(attempt)

    def _fail(self, task: Task, error: BaseException) -> None:
        """End a task because of what its policy raised, or because it cannot be started at all."""
        self._watched.pop(task, None)
        attempt = self._running.of(task)
        if attempt is not None:
            attempt.error = error
            self._stop_for_good(attempt, State.FAILED)
        elif self._admission.drop(task):
            self._end(task, State.FAILED, error=error)

    def _end(self, task: Task, state: State, value: Any = None, error: BaseException | None = None) -> None:
        self._watched.pop(task, None)
        self._recorder.ended(task, state, value, error)
        task.end(state, value, error)


def _place(location: str | Location | Server | None, recorder: Recorder) -> Location:
    """Return where the processes are to speak to. Raises ValueError, LocationError."""
    if isinstance(location, Server):
        where = location.location
    else:
        where = recorder.private_place() if location is None else resolve(location)
    if not find_transport(where.scheme).capabilities.crosses_processes:
        raise ValueError(f"{where} does not reach other processes; use unix:, or leave the location out")
    return where


def _pickled(initializer: Callable[[], object]) -> bytes:
    if not callable(initializer):
        raise TypeError(f"initializer is called in each process, but {initializer!r} cannot be called")
    try:
        call: bytes = cloudpickle.dumps(initializer, protocol=pickle.HIGHEST_PROTOCOL)
        return call
    except Exception as error:
        raise TaskNotPicklable(
            f"the initializer cannot travel to a process: {error}; open files, locks and connections inside it"
        ) from error


def _zygote(where: Location, preload: Sequence[str]) -> ZygoteLauncher:
    zygote = ZygoteLauncher(entry=f"doorman.worker:prepare:{where.scheme}", preload=preload)
    with contextlib.suppress(OSError):
        zygote.start()  # Early, so that it is warm when the first task comes; if it cannot be, a launch will say so.
    return zygote
