"""A callable or a command with the policy of its run, its state and its result."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import logging
import os
import reprlib
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

from doorman._scheduler.output import Line
from doorman._worker.pickling import pickle_call
from doorman.errors import IdentityRefused, TaskAlreadyAdded, TaskCancelled, TaskExpired, TaskFailed
from doorman.futures import TaskFuture, future_of
from doorman.identity import Identity
from doorman.limits import Limits, check_limits
from doorman.process import absolute_path
from doorman.progress import Progress
from doorman.retry import Backoff, Intensity, Restart, RetryPolicy
from doorman.states import ENDED, WAYS, State
from remit.options import check_count, check_seconds

if TYPE_CHECKING:
    from doorman._scheduler.base_manager import BaseManager
    from doorman.launcher.main_module import Script

__all__ = ["OnOutput", "OnProgress", "Task", "check_listeners"]


logger = logging.getLogger("doorman")

OnOutput: TypeAlias = "Callable[[Task, str, str], object]"
"""Called with a task, ``"stdout"`` or ``"stderr"``, and a line without its end."""
OnProgress: TypeAlias = "Callable[[Task, Progress], object]"
"""Called with a task and its latest progress."""

UNEXPECTED: Final = frozenset({State.FAILED, State.EXPIRED})
_numbers = itertools.count(1)


class Task:
    """A callable with its arguments, run once in a process of its own.

    ``Task(resize, "a.png", expires_in=30.0)`` calls ``resize("a.png")``; ``kwargs`` are keyword arguments of the
    callable. `Task.command` runs a program instead.

    name -- shown in tables and log files; default: the callable's name
    handler -- tasks with the same handler are siblings; default: the callable's module and qualified name
    expires_in -- seconds that its own code may run before it is stopped; None: no limit
    ignores_rules -- start it regardless of the manager's rules
    stops_siblings -- when it starts, stop its running siblings
    can_run -- called before it starts; while it returns False the task waits
    cancel_when -- called at each tick; once it returns True the task is cancelled
    retries -- number of further attempts after the callable raised or the process died
    backoff -- delay before each further attempt; None: none
    restart -- "temporary": never; "transient": after an abnormal end; "permanent": after every end, until cancelled
    intensity -- how often it may be restarted before it fails with RestartedTooOften; default: ``Intensity()``
    priority -- tasks with a higher number start first; equal ones start in the order in which they were added
    after -- tasks of the same manager that must be done before it starts; if one fails, this task is cancelled
    limits -- resource limits of its process
    detach -- its process outlives the manager; the next manager with the same journal adopts it
    wrapper -- a command that starts the process, such as ``("nice", "-n", "10")``
    stream -- keep its output in `lines`, read by the manager; None: as the manager is configured
    on_output -- called with the task, ``"stdout"`` or ``"stderr"``, and each line of its output
    on_progress -- called with the task and each `Progress` that it reports
    stop_signal -- the signal that asks its process to end; SIGKILL follows after the grace period
    grace -- seconds between the two; None: those of the manager
    cwd, env -- working directory and whole environment of the process; None: those of the manager at its creation

    Raises TypeError, ValueError.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        /,
        *args: Any,
        kwargs: Mapping[str, Any] | None = None,
        name: str | None = None,
        handler: str | None = None,
        expires_in: float | None = None,
        ignores_rules: bool = False,
        stops_siblings: bool = False,
        can_run: Callable[[], bool] | None = None,
        cancel_when: Callable[[], bool] | None = None,
        retries: int = 0,
        backoff: Backoff | None = None,
        restart: Restart = "temporary",
        intensity: Intensity | None = None,
        priority: int = 0,
        after: Iterable[Task] = (),
        limits: Limits | None = None,
        detach: bool = False,
        wrapper: Sequence[str] = (),
        stream: bool | None = None,
        on_output: OnOutput | None = None,
        on_progress: OnProgress | None = None,
        stop_signal: int = signal.SIGTERM,
        grace: float | None = None,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        if not callable(fn):
            raise TypeError(f"a task calls its first argument, but {fn!r} cannot be called; see also Task.command")
        if inspect.iscoroutinefunction(_innermost(fn)):
            raise TypeError(f"{fn!r} is async: a task calls a plain function, such as one that calls asyncio.run(...)")
        if detach and (stream or on_output is not None):
            raise ValueError(
                "a detached process outlives the pipes of its manager: give the manager a log_path instead"
            )
        _check_durations(expires_in, grace)
        check_count("priority", priority, least=-sys.maxsize)
        check_count("retries", retries, least=0)
        check_limits(limits)
        if kwargs is not None and not (isinstance(kwargs, Mapping) and all(isinstance(key, str) for key in kwargs)):
            raise TypeError(f"kwargs maps names of arguments to values, not {kwargs!r}")
        for text, word in (("name", name), ("handler", handler)):
            if word is not None and not isinstance(word, str):
                raise TypeError(f"{text} is a string, not {word!r}")
        check_listeners(on_output=on_output, on_progress=on_progress, can_run=can_run, cancel_when=cancel_when)
        self.fn, self.args, self.kwargs = fn, args, dict(kwargs or {})
        self.argv: tuple[str, ...] = ()
        self.id = f"{next(_numbers)}"  # unique in this process: names and handlers are not
        self.name = name or str(getattr(_innermost(fn), "__name__", type(fn).__name__))
        self.handler = handler or _handler_of(fn)
        self.expires_in, self.priority, self.after, self.limits = expires_in, priority, _tasks(after), limits
        self.ignores_rules, self.stops_siblings, self.detach = ignores_rules, stops_siblings, detach
        self.stop_signal, self.grace = signal.Signals(stop_signal), grace
        self.can_run, self.cancel_when = can_run, cancel_when
        self.retries, self.backoff, self.restart, self.intensity = retries, backoff, restart, intensity
        self.stream, self.on_output, self.on_progress = stream, on_output, on_progress
        self.wrapper = _words(wrapper, "a wrapper", "('nice', '-n', '10')") if wrapper else ()
        self.cwd = None if cwd is None else absolute_path(os.fsdecode(cwd))
        for variable, value in (env or {}).items():
            if not isinstance(variable, str) or not isinstance(value, str):
                raise TypeError(f"the environment of a process maps strings to strings, not {variable!r}: {value!r}")
            if not variable or "=" in variable:
                raise ValueError(f"a variable of the environment has a name without '=', not {variable!r}")
        self.env = None if env is None else dict(env)
        _check_no_nul("a working directory", (self.cwd or "",))
        _check_no_nul("the environment of a process", (*(env or {}), *(env or {}).values()))

        self.state = State.WAITING
        self.identity: Identity | None = None
        """The verified process of the task; None before the proof."""
        self.attempt = 0
        """Number of the current attempt; 0 before the first."""
        self.exit_code: int | None = None
        self.signal: int | None = None
        """The signal that ended its process."""
        self.max_rss: int | None = None
        """Peak memory of its process in bytes."""
        self.output: tuple[Path, Path] | None = None
        """The files of its standard output and error, if the manager keeps them."""
        self.lines: Sequence[Line] = ()
        """The last lines of its output, if they are streamed."""
        self.progress: Progress | None = None
        """The latest report of ``current_task().progress(...)``."""

        self._manager: BaseManager | None = None
        self._call: bytes | None = None
        self._script: Script | None = None  # Needed by what its callable unpickles.
        self._retry_policy = RetryPolicy(retries=retries, backoff=backoff, restart=restart, intensity=intensity)
        self._future: TaskFuture | None = None  # Made on demand: it holds a lock, and most tasks need none.
        self._done_callbacks: list[Callable[[Any], object]] = []
        self._retrieved = False  # Whether its error is the user's, or of no interest.
        self._killed = False  # by `stop(kill=True)`: no further attempt
        self._started: float | None = None
        self._ended: float | None = None
        self._value: Any = None
        self._error: BaseException | None = None

    @classmethod
    def command(cls, argv: Sequence[str], **policy: Any) -> Task:
        """Make a task that runs a program; its result is the exit code 0, any other raises WorkerDied.

        Its process proves itself and then executes the program: pid and inode stay. Takes the policy of `Task`.
        """
        words = _words(argv, "a command", "['ffmpeg', '-i', 'a.avi']")
        program = os.path.basename(words[0])  # noqa: PTH119 - a word, not a path to follow
        task = cls(_nothing, **{"name": program, "handler": program, **policy})
        task.argv = words
        return task

    def __repr__(self) -> str:
        pid = f" pid {self.identity.pid} ({self.identity.strength})" if self.identity else ""
        return f"<Task {self.id} {self.name!r} {self.state}{pid}>"

    def done(self) -> bool:
        """Whether the task has finished, in any final state."""
        return self.state in ENDED

    def result(self, timeout: float | None = None) -> Any:
        """Return the callable's result, or raise its exception with the traceback of its process as cause.

        Wait for the end for up to ``timeout`` seconds; in the thread that owns the manager the wait ticks it.
        Raises also WorkerDied, TaskCancelled, TaskExpired, ResultTimeout.
        """
        error = self.exception(timeout)
        if error is not None:
            raise error
        return self._value

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the exception that `result` would raise, or None. Raises ResultTimeout."""
        if not self.done():
            self._added_to()._run_until(self, timeout)
        self._retrieved = True
        return self._outcome[1]

    @property
    def future(self) -> TaskFuture:
        """A `concurrent.futures.Future` of its result, always the same one. Any thread may wait for it or cancel it."""
        self._retrieved = True
        return future_of(self)

    def __await__(self) -> Generator[Any, None, Any]:
        """Wait on the event loop that ticks its manager, then return or raise as `result` does."""
        if not self.done():
            yield from self._added_to()._wait_ended(self).__await__()
        return self.result()

    def cancel(self) -> bool:
        """Remove the task if it waits, stop it if it runs; False if it has finished."""
        return self._manager is not None and self._manager.cancel(self)

    def stop(self, *, kill: bool = False) -> bool:
        """Like `cancel`; with ``kill`` a verified process gets SIGKILL, and the task fails for good: WorkerDied."""
        if kill and self.identity is not None and not self.done():
            # open() fails if the process has just exited; then this is a cancel.
            with contextlib.suppress(IdentityRefused), self.identity.open() as process:
                self._killed = True
                return process.signal_tree(signal.SIGKILL)
        return self.cancel()

    @property
    def duration(self) -> float | None:
        """Seconds from its start to its end, or until now; None before its start."""
        if self._started is None:
            return None
        return (time.monotonic() if self._ended is None else self._ended) - self._started

    def __del__(self) -> None:
        error = getattr(self, "_error", None)
        if error is not None and not self._retrieved and self.state in UNEXPECTED:
            with contextlib.suppress(Exception):  # The interpreter may be about to exit.
                cause = error.__cause__
                # Without `exc_info`: to format a traceback, CPython before 3.13 parses source. A garbage collection
                # within `ast.parse` of other code, which runs this, would make that fail with SystemError.
                text = cause if isinstance(cause, TaskFailed) else f"{type(error).__name__}: {error}"
                # Its text and not itself: a handler that keeps records would keep the task.
                logger.error("%s failed, and its error was never retrieved: call result()\n%s", repr(self), text)

    # -- used by managers, in the thread that ticks them -------------------------------------------------------

    def _adopt(self, manager: BaseManager) -> bytes:
        """Bind the task to its manager and return its pickled call.

        Raises TaskAlreadyAdded, TaskNotPicklable; ValueError if a task in `after` has another manager.
        """
        if self._manager is not None:
            raise TaskAlreadyAdded(f"{self!r} was added before; make a new task for each run")
        self._check_after(manager)
        call = self._call
        if call is None:
            call = b"" if self.argv else self._pickle_call(manager._root)
        self._manager, self._call = manager, None
        return call

    def _pickle_call(self, manager: BaseManager) -> bytes:
        files = manager._same_files
        return pickle_call(f"task {self.name!r}", self.fn, self.args, self.kwargs, same_files=files)

    def _release(self, call: bytes | None = None) -> None:
        """Undo `_adopt`. The next `_adopt` returns ``call``, or pickles the task again if it is None."""
        self._manager, self._call = None, call

    def _set_state(self, state: State) -> None:
        """Change the state. Only this method does."""
        if state not in WAYS[self.state]:
            raise AssertionError(f"a task cannot go from {self.state} to {state}")
        self.state = state
        if state is State.RUNNING:
            self._started, self._ended = time.monotonic(), None
        elif state in ENDED:
            self._ended = time.monotonic()
        if self._future is not None:  # A thread that creates one just now reads the new state itself.
            self._future._update()

    def _set_started(self, moment: float) -> None:
        """Measure the duration from a monotonic moment: an adopted task started under an earlier manager."""
        self._started = moment

    @property
    def _last_attempt(self) -> bool:
        """Whether there is no further attempt, even if the policy allows one."""
        return self._killed

    def _retry(self, state: State, error: BaseException | None, delay: float) -> None:
        """Return to WAITING after an attempt with this end; the next one starts after ``delay`` seconds."""
        self.identity = None
        self._set_state(State.WAITING)

    def _finish(
        self, state: State, value: Any = None, error: BaseException | None = None, *, again: bool = False
    ) -> None:
        """Enter a final state with a result, and call the callbacks of `_on_done`.

        ``again`` if an interrupt has ended an earlier call: the state is kept if that has set it.
        """
        if not (again and self.done()):
            self._enter_final_state(state, value, error)
        elif self._future is not None:
            self._future._update()
            self._future._invoke_callbacks()
        # Emptied, since they refer to other objects and a finished task may be kept for long.
        while self._done_callbacks:
            self._done_callbacks[0](self)
            del self._done_callbacks[0]

    def _enter_final_state(self, state: State, value: Any, error: BaseException | None) -> None:
        if error is None and state is State.CANCELLED:
            error = TaskCancelled(f"task {self.name!r} was cancelled")
        if error is None and state is State.EXPIRED:
            error = TaskExpired(f"task {self.name!r} ran for more than {self.expires_in} s")
        # The result first: `_set_state` settles the future, whose callbacks read it.
        self._value, self._error = value, error
        self._set_state(state)

    def _on_done(self, callback: Callable[[Self], object]) -> None:
        """Call ``callback(task)`` when the task ends, or now if it has; again after an interrupt in it.

        The callback must not raise.
        """
        if self.done():
            callback(self)
        else:
            self._done_callbacks.append(callback)

    @property
    def _outcome(self) -> tuple[Any, BaseException | None]:
        """The result and the error of a finished task."""
        return self._value, self._error

    def _report_progress(self, progress: Progress, also: OnProgress | None) -> None:
        """Store a progress report and call the listeners: the task's own, then the manager's."""
        self.progress = progress
        for listener in (self.on_progress, also):
            if listener is not None:
                try:
                    listener(self, progress)
                except Exception as error:  # One listener must not stop the others.
                    logger.error("a progress listener of %r raised", self, exc_info=error)

    def _added_to(self) -> BaseManager:
        if self._manager is None:
            raise ValueError(f"{self!r} has not been added to a manager")
        return self._manager

    def _check_after(self, manager: BaseManager) -> None:
        """Raise ValueError unless all tasks in `after` were added to the manager that will run this one.

        Tasks are added in the order of their dependencies, so a cycle always holds a task without a manager.
        """
        for first in self.after:
            if first._manager is None:
                if _depends(first, self):
                    raise ValueError(f"{self!r} and {first!r} come after each other: neither could ever start")
                raise ValueError(f"{self!r} comes after {first!r}, which no manager has: add that one first")
            if first._manager._root is not manager._root:
                raise ValueError(
                    f"{self!r} comes after {first!r}, which is another manager's: add both to one, "
                    "or wait for the other's result first"
                )


def _depends(task: Task, other: Task) -> bool:
    """Return whether a task comes after another one, directly or not."""
    seen, ahead = {task}, [task]
    while ahead:
        task = ahead.pop()
        if task is other:
            return True
        new = set(task.after) - seen
        seen |= new
        ahead += new
    return False


def check_listeners(**listeners: Callable[..., object] | None) -> None:
    """Raise TypeError unless each listener or condition is None or a plain function."""
    for name, listener in listeners.items():
        if listener is not None and not callable(listener):
            raise TypeError(f"{name} is called, but {listener!r} cannot be")
        if inspect.iscoroutinefunction(listener):
            raise TypeError(f"{name} is called in a tick, so it must be a plain function; it may start an asyncio task")


def _tasks(after: object) -> tuple[Task, ...]:
    """Return one task or several as a tuple. Raises TypeError."""
    found = tuple(after) if isinstance(after, Iterable) else (after,)
    for first in found:
        if not isinstance(first, Task):
            raise TypeError(f"after is a sequence of tasks, such as (first, second), but {first!r} is not a task")
    return found


def _innermost(fn: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(fn, functools.partial):
        fn = fn.func
    return fn


def _handler_of(fn: Callable[..., Any]) -> str:
    fn = _innermost(fn)
    module = getattr(fn, "__module__", None) or type(fn).__module__
    return f"{module}.{getattr(fn, '__qualname__', type(fn).__qualname__)}"


def _check_durations(expires_in: float | None, grace: float | None) -> None:
    if expires_in is not None:
        check_seconds("expires_in", expires_in, above_zero=True)
    if grace is not None:
        check_seconds("grace", grace)


def _words(words: Sequence[str | os.PathLike[str]], what: str, example: str) -> tuple[str, ...]:
    read = () if isinstance(words, str | bytes) or not isinstance(words, Iterable) else tuple(words)
    if not read or not all(isinstance(word, str | os.PathLike) for word in read):
        raise TypeError(f"{what} is a sequence of strings, such as {example}, not {words!r}")
    found = tuple(os.fspath(word) for word in read)
    _check_no_nul(what, found)
    return found


def _check_no_nul(what: str, words: Iterable[str]) -> None:
    """Raise ValueError for a NUL, where the strings of the kernel end."""
    for word in words:
        if "\0" in word:
            raise ValueError(f"{what} cannot contain the character NUL: {reprlib.repr(word)}")


def _nothing() -> None:
    """Do nothing: the callable of a command."""
