"""A manager without processes, which runs tasks one after the other in the calling process."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import IO, Any, Final, TypeAlias

from doorman._scheduler.base_manager import BaseManager
from doorman._scheduler.output import KEPT_LINES, Line, Lines, deliver_line, is_streamed
from doorman._scheduler.request_queue import RequestQueue
from doorman._scheduler.run_queue import RunQueue
from doorman._worker.program import SHELL, exit_code_of, is_shell_script, reason_of
from doorman.current import CurrentTask, task_context
from doorman.errors import ProgramNotRun, RestartedTooOften, TaskFailed, WorkerDied
from doorman.identity import own_identity
from doorman.launcher.process_exit import exit_code
from doorman.rules import Rule
from doorman.states import State
from doorman.task import OnOutput, OnProgress, Task, check_listeners
from remit import Server

__all__ = ["SynchronousManager"]

STREAMS: Final = ("stdout", "stderr")
READ_BYTES: Final = 64 * 1024
RETRY_INTERVAL_S: Final = 0.01  # Nothing reports that a rule or a condition begins to allow a task.
_End: TypeAlias = tuple[State, Any, BaseException | None]


@contextlib.contextmanager
def capture_output(task: Task, listener: OnOutput | None) -> Iterator[None]:
    """Capture the output of a block if the task is streamed, and deliver its lines at the end of the block."""
    if not is_streamed(task, listener):
        yield
        return
    task.lines = kept = deque[Line](maxlen=KEPT_LINES)
    # Not through pipes: while the task runs no thread reads, and a write to a full pipe would block forever.
    with contextlib.ExitStack() as files:
        written = [files.enter_context(tempfile.TemporaryFile()) for _ in STREAMS]
        try:
            with contextlib.ExitStack() as redirected:
                for number, (name, file) in enumerate(zip(STREAMS, written, strict=True), 1):
                    redirected.enter_context(_redirected(name, number, file.fileno()))
                yield
        finally:
            for name, file in zip(STREAMS, written, strict=True):
                for line in _lines(file):
                    kept.append(Line(name, line))
                    deliver_line(task, name, line, listener)


@contextlib.contextmanager
def _redirected(name: str, descriptor: int, to: int) -> Iterator[None]:
    # C code and programs write to the descriptor, Python code to the stream.
    before = getattr(sys, name)
    with contextlib.suppress(AttributeError, OSError, ValueError):  # There may be no stream, or a closed one.
        before.flush()
    try:
        kept = os.dup(descriptor)
    except OSError:
        kept = None
    os.dup2(to, descriptor)
    stream = open(os.dup(to), "w", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: PTH123, SIM115
    setattr(sys, name, stream)
    try:
        yield
    finally:
        if getattr(sys, name) is stream:
            setattr(sys, name, before)
        with contextlib.suppress(ValueError):  # The task may have closed it.
            stream.close()
        if kept is None:
            os.close(descriptor)
        else:
            os.dup2(kept, descriptor)
            os.close(kept)


def _lines(file: IO[bytes]) -> Iterator[str]:
    cut = Lines()
    file.seek(0)
    while data := file.read(READ_BYTES):
        yield from cut.feed(data)
    yield from cut.feed(b"", last=True)


class SynchronousManager(BaseManager):
    """Runs all waiting tasks in each tick, in the order in which they were added, in the calling process.

    For tests, debugging, and where processes cannot be started. Rules and conditions apply. A callable shares the
    process's environment, working directory and output, and cannot be stopped when it expires; a command can.
    `Task.identity` is the calling process. Streamed output, with that of other threads, follows the end of a task.
    """

    def __init__(
        self, *, rules: Iterable[Rule] = (), on_output: OnOutput | None = None, on_progress: OnProgress | None = None
    ) -> None:
        super().__init__()
        check_listeners(on_output=on_output, on_progress=on_progress)
        self._on_output, self._on_progress = on_output, on_progress
        self.server = Server(f"memory://doorman-{secrets.token_hex(8)}", threaded=False)
        self._run_queue = RunQueue(rules)
        self.rules = self._run_queue.rules
        self._task_listeners: dict[str, list[Callable[..., Any]]] = {}
        self._running: Task | None = None
        self._requests = RequestQueue(self._repair)
        self._closed = False

    def add_task(self, task: Task) -> Task:
        """Queue a task; it runs in the next tick. Raises TaskAlreadyAdded, TaskNotPicklable, ValueError."""
        if self._closed:
            raise ValueError("this manager is closed")
        if task.limits is not None:
            raise ValueError(f"{task!r} has limits, which need a process of its own: add it to a ProcessManager")
        return self._add(task, self._place, self._run_queue.has)

    def _place(self, task: Task, call: bytes) -> None:
        self._requests.append(self._place_added)  # First: see Supervisor.add.
        self._run_queue.added[task] = call
        self._requests.run()

    def _place_added(self, again: bool) -> None:
        for task, call in tuple(self._run_queue.added.items()):
            self._run_queue.add(task, call)

    def _repair(self) -> None:
        self._run_queue.rebuild(())
        if self._run_queue.added:
            self._requests.append(self._place_added)

    @property
    def waiting(self) -> tuple[Task, ...]:
        """The tasks that have not run yet."""
        return self._run_queue.tasks

    @property
    def running(self) -> tuple[Task, ...]:
        """The running task: only code called by a task sees one."""
        return () if self._running is None else (self._running,)

    def why(self, task: Task) -> str | None:
        """Return why a waiting task did not start in the last tick, with figures; None if nothing held it back."""
        return self._run_queue.why(task)

    def emit_to(self, task: Task, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Emit an event to the running task, from a listener of its events. Raises ValueError if it does not run."""
        if task is not self._running:
            raise ValueError(f"{task!r} does not run, so it has no listener for {name!r}")
        for listener in tuple(self._task_listeners.get(name, ())):
            listener(*args, **kwargs)

    def cancel(self, task: Task) -> bool:
        """Remove a waiting task; False if it runs, since it cannot be stopped here, or has finished."""
        return self._end(task, State.CANCELLED)

    def _after_interrupt(self) -> None:
        if self._running is not None:
            self._stop_running((State.CANCELLED, None, None))

    def _tick(self) -> None:
        self.server.tick()
        self._run_scheduled_calls()
        self._requests.run()
        self._release_dependents()
        admitted = self._run_queue.admit((), sys.maxsize)
        try:
            while (item := self._requests.guard(next, admitted, None)) is not None:
                queued, error = item
                self._requests.run()  # A `can_run` may have cancelled a task.
                if error is not None:
                    self._end(queued.task, State.FAILED, error)
                elif self._run_queue.has(queued.task) and self._still_wanted(queued.task):
                    self._run_task(queued.task)
                    self._release_dependents()
        finally:
            self._requests.guard(admitted.close)
        self._release_dependents()
        for task in self.waiting:  # A task that may not start now can be cancelled.
            self._still_wanted(task)

    def wait(self, timeout: float) -> None:
        """Return after ``timeout`` seconds, or earlier if there is work for `tick`."""
        self.server.wait(0.0 if self._scheduled_calls else min(timeout, RETRY_INTERVAL_S) if self.busy else timeout)

    def close(self) -> None:
        """Cancel waiting tasks and close the server. May be called twice."""
        self._closed = True
        self._detach_loop()
        self._requests.run()  # What an interrupted call has left.
        self.stop()
        self.server.close()

    @property
    def _outlived(self) -> bool:
        return self._closed

    def _release_dependents(self) -> None:
        for task, error in self._requests.guard(lambda: list(self._run_queue.release_dependents())):
            self._end(task, State.CANCELLED, error)

    def _still_wanted(self, task: Task) -> bool:
        """Evaluate `cancel_when`; False if the task was cancelled by it, or failed since it raised."""
        if task.cancel_when is None:
            return not task.done()
        try:
            if task.cancel_when():
                self.cancel(task)
        except Exception as error:  # noqa: BLE001 - one task's condition must not stop the others
            self._end(task, State.FAILED, error)
        return not task.done()

    def _end(self, task: Task, state: State, error: BaseException | None = None) -> bool:
        """Finish a waiting task; False if it does not wait."""
        waits = self._run_queue.has(task)
        if waits:
            self._requests.put(lambda again: self._finish_waiting(task, state, error, again))
        return waits

    def _finish_waiting(self, task: Task, state: State, error: BaseException | None, again: bool) -> None:
        if self._run_queue.remove(task) or again:
            task._finish(state, error=error, again=again)

    def _run_task(self, task: Task) -> None:
        self._running = task
        self._requests.guard(self._run_queue.remove, task)
        task.attempt += 1
        task.identity = own_identity(f"{task.id}.{task.attempt}")
        task._set_state(State.RUNNING)
        with capture_output(task, self._on_output):
            end = _command(task) if task.argv else self._call(task)
        self._stop_running(end)

    def _stop_running(self, end: _End) -> None:
        """End the running task, or let it wait for its next attempt."""
        task = self._running
        assert task is not None
        self._requests.append(lambda again: self._retry_or_finish(task, *end, again))
        self._running = None
        self._task_listeners.clear()
        self._requests.run()

    def _retry_or_finish(self, task: Task, state: State, value: Any, error: BaseException | None, again: bool) -> None:
        if task.done():
            task._finish(state, again=True)
            return
        if task.state is State.WAITING:  # An interrupt occurred before its start, or after its end.
            if not self._run_queue.has(task):
                self._run_queue.delay(task, b"", 0.0)
            return
        delay, now = None, time.monotonic()
        if not (self._closed or task._last_attempt):
            try:
                delay = task._retry_policy.delay(state, error, attempt=task.attempt, ran=task.duration, now=now)
            except RestartedTooOften as often:
                state, value, error = State.FAILED, None, often
        if delay is not None:
            task._retry(state, error, delay)
            self._run_queue.delay(task, b"", delay)
            return
        if state in (State.CANCELLED, State.EXPIRED) and task.state is not State.STOPPING:
            task._set_state(State.STOPPING)
        task._finish(state, value, error)

    def _call(self, task: Task) -> _End:
        current = CurrentTask(
            task.name,
            task.attempt,
            emit=lambda name, args, kwargs: self.server.emit(name, *args, **kwargs),
            listen=lambda name, listener: self._task_listeners.setdefault(name, []).append(listener),
            report=lambda news: task._report_progress(replace(news, at=time.time()), self._on_progress),
        )
        try:
            with task_context(current):
                return State.DONE, task.fn(*task.args, **task.kwargs), None
        except SystemExit as leaving:
            code = exit_code(leaving)  # As from a process: 0 is a success.
            return (State.FAILED, None, WorkerDied(os.getpid(), code, None)) if code else (State.DONE, None, None)
        except Exception as raised:  # noqa: BLE001 - one task that raises must not stop the others
            # As from a process: the user's exception, caused by a TaskFailed with the traceback as text.
            failure = TaskFailed(f"the task raised:\n\n{''.join(traceback.format_exception(raised))}")
            failure.__cause__, raised.__cause__ = raised.__cause__, failure
            return State.FAILED, None, raised


def _started(command: list[str], task: Task) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(command, cwd=task.cwd, env=task.env)
    except OSError as error:
        path = shutil.which(command[0])
        if path is None or not is_shell_script(path, error):
            raise
    return subprocess.Popen([SHELL, path, *command[1:]], cwd=task.cwd, env=task.env)


def _command(task: Task) -> _End:
    """Run the program of a task to its end, or until it expires."""
    command = [*task.wrapper, *task.argv]
    try:
        process = _started(command, task)
    except OSError as error:
        task.exit_code = exit_code_of(error)
        return State.FAILED, None, ProgramNotRun(command[0], reason_of(error, command[0]), task.exit_code)
    with process:  # Its exit waits for the program, so each error kills it first.
        try:
            code = process.wait(task.expires_in)
        except subprocess.TimeoutExpired:
            process.kill()
            return State.EXPIRED, None, None
        except BaseException:
            process.kill()
            raise
    task.exit_code, task.signal = (code, None) if code >= 0 else (None, -code)
    return (State.FAILED, None, WorkerDied(process.pid, task.exit_code, task.signal)) if code else (State.DONE, 0, None)
