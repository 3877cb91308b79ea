"""The manager that runs each task in a child process."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, Final

from doorman._scheduler.attempt import Timeouts
from doorman._scheduler.base_manager import BaseManager
from doorman._scheduler.handshake import Handshake
from doorman._scheduler.lifecycle import ManagerClosed, ManagerClosing
from doorman._scheduler.output import Logs, Streams
from doorman._scheduler.run_queue import RunQueue
from doorman._scheduler.supervisor import Supervisor
from doorman._worker.pickling import pickle_initializer
from doorman.journal.journal import Journal
from doorman.journal.recorder import Recorder
from doorman.journal.recovery import AdoptedProcessLauncher, Recovery
from doorman.launcher import Launcher, Reach
from doorman.launcher.zygote import ZygoteLauncher
from doorman.limits import raise_descriptor_limit
from doorman.rules import Rule
from doorman.task import OnOutput, OnProgress, Task, check_listeners
from remit import Location, Server
from remit._internal import ignore_unheard
from remit.config import resolve
from remit.plugins import find_transport

__all__ = ["ProcessManager"]

GRACE: Final = 3.0
"""Seconds between SIGTERM and SIGKILL."""
HELLO_TIMEOUT: Final = 30.0
"""Seconds between the launch of a process and its proof."""
KILL_TIMEOUT_S: Final = 5.0
"""Seconds that close() waits after the grace period for the processes that it has killed."""


def _open(
    where: Location, server: Server | None, launcher: Launcher | None, preload: Sequence[str], undone: ExitStack
) -> tuple[Launcher, Server]:
    """Return the launcher and the server of a manager, which ``undone`` closes."""
    # The zygote first: it must be exec'd before a transport starts threads here.
    if launcher is None:
        launcher = zygote = ZygoteLauncher(entry=f"doorman._worker.main:prepare:{where.scheme}", preload=preload)
        undone.callback(zygote.close, 0.0)
        with contextlib.suppress(OSError):
            zygote.start()  # Early, so that it is warm for the first task; if it fails, the launch reports it.
    else:
        undone.callback(launcher.close, 0.0)
    return launcher, server or undone.enter_context(Server(where))


def _place(location: str | Location | Server | None, recorder: Recorder) -> Location:
    if isinstance(location, Server):
        where = location.location
    else:
        where = recorder.private_place() if location is None else resolve(location)
    if not find_transport(where.scheme).capabilities.crosses_processes:
        raise ValueError(f"{where} does not reach other processes; use unix:, or leave the location out")
    return where


class ProcessManager(BaseManager):
    """Runs each task in a process of its own. User code begins after the process has proven that it is the task's.

    ``location`` is where the processes connect to the manager: a Remit location that crosses processes, an open
    `Server` that the caller closes, or None for a private location on the configured transport. The manager works only
    inside `tick`, `run` and `Task.result`, in the caller's thread.

    launcher -- starts the processes; default: a warm zygote that forks them
    rules -- limit which tasks may start; without rules all start immediately
    preload -- modules that the zygote imports once for all tasks
    initializer -- called without arguments in each process before the task's code; if it raises, the task fails
    log_path -- folder for log files of each task's output and errors; None: tasks write to those of the manager
    shared_log -- all tasks append to one ``stdout.log`` and one ``stderr.log`` in that folder
    journal -- a file that survives the manager, or a `Journal`; `recovered` has the tasks of the earlier manager
    on_output -- called with the task, ``"stdout"`` or ``"stderr"``, and each line of its output
    on_progress -- called with the task and each `Progress` that it reports
    grace -- seconds between SIGTERM and SIGKILL
    hello_timeout -- seconds within which a process must have proven itself

    Leaving the manager's block stops the running tasks; `run` waits for their end.
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
        self._same_files = getattr(launcher, "reach", Reach.BELOW) is Reach.BELOW
        first_call = pickle_initializer(initializer, same_files=self._same_files)
        logs = Logs(log_path, shared=shared_log)
        raise_descriptor_limit()
        self._shutdown_timeout = grace + KILL_TIMEOUT_S
        self._closed = self._stopped = self._released = False
        self._owner = os.getpid()
        self._clock = time.monotonic
        self._run_queue = RunQueue(rules)
        self.rules = self._run_queue.rules
        self._shares = isinstance(location, Server)
        self.recovered: tuple[Task, ...] = ()
        """The tasks of the journal when it was opened, in the order in which they were added."""
        undone = ExitStack()
        # No `with`: an interrupt may occur at the line that ends its block.
        try:
            self._recorder = recorder = Recorder(journal)
            undone.callback(recorder.close)
            server = location if isinstance(location, Server) else None
            self._launcher, self.server = _open(_place(location, recorder), server, launcher, preload, undone)
            adopting = None if recorder.journal is None else AdoptedProcessLauncher(self._launcher)
            if adopting is not None:
                self._launcher = adopting
                undone.callback(adopting.close, KILL_TIMEOUT_S)
            self._output = Streams(logs, self._launcher, on_output)
            self._handshake = Handshake(self.server)
            undone.callback(self._handshake.close)
            self.refused = self._handshake.refused
            """Number of refused hellos and results, and of processes that did not prove themselves, by reason."""
            self._supervisor = Supervisor(
                self._launcher,
                self._run_queue,
                recorder,
                self._output,
                self._handshake,
                timeouts=Timeouts(grace, hello_timeout),
                payload=(pickle.dumps(self.server.location), first_call),
                on_progress=on_progress,
            )
            self._requests = self._supervisor.requests
            if adopting is not None and recorder.journal is not None:
                recovery = Recovery(recorder, self._run_queue, self._supervisor, adopting)
                self.recovered = recovery.run(self, recorder.journal.entries())
        except BaseException:
            self._closed = True
            undone.close()
            raise

    def add_task(self, task: Task) -> Task:
        """Add a task; it starts in a later tick. Raises TaskNotPicklable, TaskAlreadyAdded."""
        if self._closed:
            raise ValueError("this manager is closed")
        if task.grace is not None:
            self._shutdown_timeout = max(self._shutdown_timeout, task.grace + KILL_TIMEOUT_S)
        return self._add(task, self._supervisor.add, self._supervisor.has)

    @property
    def waiting(self) -> tuple[Task, ...]:
        """The tasks that have no process yet, in the order in which they were added."""
        return self._run_queue.tasks

    @property
    def running(self) -> tuple[Task, ...]:
        """The tasks whose process is running or being launched."""
        return self._supervisor.tasks

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def busy(self) -> bool:
        """Whether any task waits or runs."""
        return bool(len(self._run_queue) or len(self._supervisor) or self._requests.pending)

    def why(self, task: Task) -> str | None:
        """Return why a waiting task did not start in the last tick, with figures; None if nothing held it back."""
        return self._run_queue.why(task)

    def emit_to(self, task: Task, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Emit an event to a running task, which listens by ``current_task().on(name, listener)``.

        The event is acknowledged. Raises ValueError if the task does not run, EmitError, CodecError.
        """
        attempt = self._supervisor.attempt_of(task)
        if attempt is None or attempt.sender is None:
            raise ValueError(f"{task!r} does not run: {name!r} cannot be delivered")
        attempt.sender.emit(name, *args, **kwargs)

    def cancel(self, task: Task) -> bool:
        """Remove a waiting task or stop a running one; False if it has finished."""
        self._wake_loop()
        return self._supervisor.cancel(task)

    def kill(self) -> None:
        """Like `stop`, with SIGKILL now and no grace period."""
        self.stop()
        self._supervisor.kill()

    def suspend(self) -> None:
        """Stop the processes of all tasks by SIGSTOP, with their descendants, as Ctrl-Z does. Time limits run on."""
        self._supervisor.signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue the processes of all tasks after `suspend`."""
        self._supervisor.signal_all(signal.SIGCONT)

    def _tick(self) -> None:
        if not self._closed:
            self._recorder.check()
        self._supervisor.gather()
        self._run_scheduled_calls()
        self._supervisor.call_cancel_when()
        self._supervisor.end_dependents()
        if not self._closed:
            self._supervisor.start()

    def wait(self, timeout: float) -> None:
        """Return after ``timeout`` seconds, or earlier if there is work for `tick`."""
        timeout = self._run_queue.next_timeout(timeout, full=self._supervisor.room <= 0)
        timeout = 0.0 if self._scheduled_calls or self._output.pending else self._supervisor.next_timeout(timeout)
        self.server.wait(timeout, self._output.waker)

    def close(self) -> None:
        """Stop running tasks, cancel waiting ones, and release all resources. May be called twice."""
        if self._released:
            return
        # A call that was interrupted is completed by the next one.
        self._closed = True
        if self._owner == os.getpid():
            try:
                self._detach_loop()
                if not self._stopped:
                    self._begin_shutdown()
                    self._stopped = True
                    self._run(self._shutdown_timeout)
            finally:
                if not self._stopped:  # An interrupt occurred above.
                    self._begin_shutdown()
                    self._stopped = True
                self._release()
                self._supervisor.handle_all(ManagerClosed())
        else:
            self._launcher.close(0.0)  # A fork: the tasks and the server are the parent's.
        self._recorder.close()
        self._output.close()
        self._released = True

    @property
    def _outlived(self) -> bool:
        return self._closed or self._recorder.journal is not None

    def _begin_shutdown(self) -> None:
        """Leave detached processes running, and cancel the other tasks; the journal's next manager gets both."""
        self._recorder.leaving()
        self._supervisor.handle_all(ManagerClosing())
        self.stop()

    def _release(self) -> None:
        self._launcher.close(KILL_TIMEOUT_S)
        if not self._shares:
            ignore_unheard(self.server)
        self._handshake.close()
        if not self._shares:
            self.server.close()
