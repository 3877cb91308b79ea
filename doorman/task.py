"""Task: what is wanted: a callable or a command, and its policy. What becomes of it is its life."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import logging
import os
import signal
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, TypeAlias

from doorman._scheduler.output import Line
from doorman._worker.pickling import pickle_call
from doorman.errors import IdentityRefused, RestartedTooOften, TaskAlreadyAdded, TaskCancelled, TaskExpired
from doorman.futures import TaskFuture, future_of
from doorman.identity import Identity
from doorman.limits import Limits
from doorman.progress import Progress
from doorman.retry import Backoff, Intensity, Restart, RetryPolicy
from doorman.states import ENDED, State, is_legal

__all__ = [
    "Keeper",
    "Life",
    "OnOutput",
    "OnProgress",
    "Successor",
    "Task",
    "check_listeners",
    "check_succession",
]


class Keeper(Protocol):
    """A manager as its tasks see it: `doorman._scheduler.base_manager.Owner` says what each of these does."""

    @property
    def _root(self) -> Keeper:
        """The manager that runs the tasks in the end."""

    @property
    def _owned_here(self) -> bool:
        """Whether the calling thread is the one that ticks it."""

    def tick(self) -> bool:
        """Do what can be done now; True while anything waits or runs."""

    def wait(self, timeout: float) -> None:
        """Return after ``timeout`` seconds, or earlier if `tick` has something to do."""

    def _call_soon(self, function: Callable[[], object]) -> None:
        """Have ``function()`` called in the next tick. Safe from any thread."""

    def cancel(self, task: Any) -> bool:
        """Drop a waiting task or stop a running one; False if it has ended."""

    def _run_until(self, task: Any, timeout: float | None) -> None:
        """Make progress until the task has ended. Raises ResultTimeout."""

    async def _wait_ended(self, task: Any) -> None:
        """Return when the task has ended."""


class Life:
    """The part of a `Task` that changes. Users read it and wait for its end; its manager alone moves it on."""

    name: str
    expires_in: float | None
    _retry_policy: RetryPolicy
    """What its policy says of another try."""

    def __init__(self) -> None:
        self.state = State.WAITING
        self.identity: Identity | None = None
        """The process that was proven to be this task's; None until then."""
        self.attempt = 0
        """Which try this is; 0 before the first."""
        self.exit_code: int | None = None
        self.signal: int | None = None
        """The signal that ended its process."""
        self.max_rss: int | None = None
        """The most memory its process had at once, in bytes."""
        self.output: tuple[Path, Path] | None = None
        """The files of its standard output and error, where the manager keeps them."""
        self.lines: Sequence[Line] = ()
        """The last lines that it wrote, if they are streamed."""
        self.progress: Progress | None = None
        """How far it has come, as it last reported with ``current_task().progress(...)``."""
        self._future: TaskFuture | None = None
        """Its `future`, once somebody has asked for it."""
        self._manager: Keeper | None = None
        self._watchers: list[Callable[[Any], object]] = []
        self._killed = False
        """Whether `stop` has ended it for good."""
        self._started: float | None = None
        self._ended: float | None = None
        self._value: Any = None
        self._error: BaseException | None = None

    # -- for those who wait ------------------------------------------------------------------------------------

    def done(self) -> bool:
        """Whether it has ended, however."""
        return self.state in ENDED

    def result(self, timeout: float | None = None) -> Any:
        """Return what the callable returned, or raise what it raised, with its process's traceback as cause.

        Before the end it waits up to ``timeout`` seconds; in the thread that owns the manager it ticks it meanwhile.
        Raises also WorkerDied, TaskCancelled, TaskExpired, ResultTimeout.
        """
        error = self.exception(timeout)
        if error is not None:
            raise error
        return self._value

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what `result` would raise; None if the task returned. Raises ResultTimeout."""
        if not self.done():
            self._kept()._run_until(self, timeout)
        return self._error

    @property
    def future(self) -> TaskFuture:
        """A `concurrent.futures.Future` of its result, always the same one, for any thread to wait for or to cancel."""
        return future_of(self)

    def __await__(self) -> Generator[Any, None, Any]:
        """Wait on the event loop that ticks its manager, and return or raise what `result` does."""
        if not self.done():
            yield from self._kept()._wait_ended(self).__await__()
        return self.result()

    def cancel(self) -> bool:
        """Drop it if it waits, stop it if it runs; False if it has ended."""
        return self._manager is not None and self._manager.cancel(self)

    def stop(self, *, kill: bool = False) -> bool:
        """Like `cancel`; with ``kill`` a proven process gets SIGKILL, and the task fails for good: WorkerDied."""
        if kill and self.identity is not None and not self.done():
            with contextlib.suppress(IdentityRefused), self.identity.open() as process:  # Else it has just ended.
                self._killed = True
                return process.signal_group(signal.SIGKILL)
        return self.cancel()

    @property
    def duration(self) -> float | None:
        """Seconds from its start to its end, or until now; None before its start."""
        if self._started is None:
            return None
        return (time.monotonic() if self._ended is None else self._ended) - self._started

    # -- for its manager ---------------------------------------------------------------------------------------

    def _set_state(self, state: State) -> None:
        """Go to another state; the only place where it changes."""
        if not is_legal(self.state, state):
            raise AssertionError(f"a task cannot go from {self.state} to {state}")
        self.state = state
        if state is State.RUNNING:
            self._started, self._ended = time.monotonic(), None
        elif state in ENDED:
            self._ended = time.monotonic()
        if self._future is not None:
            self._future.update()

    def _set_started(self, moment: float) -> None:
        """Count its duration from this moment of the monotonic clock: it began under a manager before."""
        self._started = moment

    def _next_attempt(
        self, state: State, value: Any, error: BaseException | None, *, wanted: bool
    ) -> tuple[State, Any, BaseException | None, float | None]:
        """Wait again after an attempt that ended so, if the policy says so and it is still ``wanted``.

        Returns how the task ends, which may be otherwise than its attempt; or at last the seconds until its next try.
        """
        wanted = wanted and not self._killed
        ran = None if self.identity is None else self.duration
        try:
            now = time.monotonic()
            pause = self._retry_policy.delay(state, error, attempt=self.attempt, ran=ran, now=now) if wanted else None
        except RestartedTooOften as often:
            return State.FAILED, None, often, None
        if pause is not None:
            self.identity = None
            self._set_state(State.WAITING)
        return state, value, error, pause

    def _finish(self, state: State, value: Any = None, error: BaseException | None = None) -> None:
        """Go to a state that is an end, with what `result` returns or raises."""
        if error is None and state is State.CANCELLED:
            error = TaskCancelled(f"task {self.name!r} was cancelled")
        if error is None and state is State.EXPIRED:
            error = TaskExpired(f"task {self.name!r} ran for more than {self.expires_in} s")
        self._value, self._error = value, error
        self._set_state(state)
        watchers, self._watchers = self._watchers, []
        for tell in watchers:
            tell(self)

    def _on_done(self, tell: Callable[[Self], object]) -> None:
        """Have ``tell(task)`` called at its end, or at once if it has ended. It must not raise."""
        if self.done():
            tell(self)
        else:
            self._watchers.append(tell)

    @property
    def _outcome(self) -> tuple[Any, BaseException | None]:
        """The value and the error that it ended with."""
        return self._value, self._error

    @property
    def owner(self) -> Keeper | None:
        """The manager that it was added to."""
        return self._manager

    def _kept(self) -> Keeper:
        """Return the manager that makes progress with it. Raises ValueError."""
        if self._manager is None:
            raise ValueError(f"{self!r} has not been added to a manager")
        return self._manager


class Successor(Protocol):
    """A task, as far as its place behind others goes."""

    @property
    def after(self) -> tuple[Self, ...]:
        """The tasks that have to be done before it."""

    @property
    def owner(self) -> Keeper | None:
        """The manager that it was added to."""


def check_succession(task: Successor, owner: Keeper) -> None:
    """Raise ValueError if the task comes after itself, or after one that is not the same manager's."""
    for first in task.after:
        theirs = first.owner
        if theirs is None:
            if _reaches(first, task):
                raise ValueError(f"{task!r} and {first!r} come after each other: neither could ever start")
            raise ValueError(f"{task!r} comes after {first!r}, which no manager has: add that one first")
        if theirs._root is not owner._root:
            raise ValueError(
                f"{task!r} comes after {first!r}, which is another manager's: add both to one, "
                "or wait for the other's result first"
            )


def _reaches(start: Successor, goal: Successor) -> bool:
    seen, ahead = {start}, [start]
    while ahead:
        task = ahead.pop()
        if task is goal:
            return True
        new = set(task.after) - seen
        seen |= new
        ahead += new
    return False


logger = logging.getLogger("doorman")

OnOutput: TypeAlias = "Callable[[Task, str, str], object]"
"""Called with a task, ``"stdout"`` or ``"stderr"``, and a line without its end."""
OnProgress: TypeAlias = "Callable[[Task, Progress], object]"
"""Called with a task and how far it has come."""

_numbers = itertools.count(1)


class Task(Life):
    """A callable with its arguments, to be run once by a process of its own.

    ``Task(resize, "a.png", expires_in=30.0)`` calls ``resize("a.png")``; keyword arguments for the callable go into
    ``kwargs``. `Task.command` runs a program instead.

    name -- shown in tables and log files; default: the callable's name
    handler -- tasks with the same handler are siblings; default: the callable's module and qualified name
    expires_in -- seconds its own code may run before it is stopped; None: for ever
    ignores_rules -- start it whatever the rules say
    stops_siblings -- when it starts, stop the siblings that run
    can_run -- asked before it starts; while it returns False the task waits
    cancel_when -- asked at each tick; once it returns True the task is cancelled
    retries -- how often it is tried again after it raised or its process died
    backoff -- how long it waits before that; None: not at all
    restart -- "temporary": never again; "transient": again if it ended abnormally; "permanent": always, until cancelled
    intensity -- how often it may be restarted before it fails with RestartedTooOften; default: ``Intensity()``
    priority -- the higher, the earlier it starts among those that wait; equal ones start as they were added
    after -- tasks of the same manager that have to be done before it starts; if one is not, this one is cancelled
    limits -- what its process may use
    detach -- its process outlives the manager; the next one with the same journal takes it over
    wrapper -- a command that the process is started with, such as ``("nice", "-n", "10")``
    stream -- keep what it writes in `lines`, read by the manager; None: as the manager does
    on_output -- called with the task, ``"stdout"`` or ``"stderr"``, and each line that it writes
    on_progress -- called with the task and each `Progress` that it reports
    cwd, env -- the process's working directory and whole environment; None: as they were when the manager was made

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
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        if not callable(fn):
            raise TypeError(f"a task calls its first argument, but {fn!r} cannot be called; see also Task.command")
        if detach and (stream or on_output is not None):
            raise ValueError(
                "a detached process outlives the pipes of its manager: give the manager a log_path instead"
            )
        check_listeners(on_output=on_output, on_progress=on_progress)
        super().__init__()
        self.fn, self.args, self.kwargs = fn, args, dict(kwargs or {})
        self.argv: tuple[str, ...] = ()
        self.id = f"{next(_numbers)}"
        self.name = name or str(getattr(_innermost(fn), "__name__", type(fn).__name__))
        self.handler = handler or _handler_of(fn)
        self.expires_in = _seconds(expires_in)
        self.ignores_rules = ignores_rules
        self.stops_siblings = stops_siblings
        self.can_run = _question("can_run", can_run)
        self.cancel_when = _question("cancel_when", cancel_when)
        self.retries = retries
        self.backoff, self.restart, self.intensity = backoff, restart, intensity
        self._retry_policy = RetryPolicy(retries=retries, backoff=backoff, restart=restart, intensity=intensity)
        self.priority = _priority(priority)
        self.after = _tasks(after)
        self.limits = _limits(limits)
        self.detach = detach
        self.stream, self.on_output, self.on_progress = stream, on_output, on_progress
        self.wrapper = _words(wrapper, "a wrapper", "('nice', '-n', '10')") if wrapper else ()
        self.cwd = None if cwd is None else os.path.abspath(os.fsdecode(cwd))  # noqa: PTH100 - keeps links
        self.env = None if env is None else _environment(env)
        self._call: bytes | None = None

    @classmethod
    def command(cls, argv: Sequence[str], **policy: Any) -> Task:
        """Make a task that runs a program; its result is the exit code 0, any other raises WorkerDied.

        Its process proves itself and then becomes the program: pid and inode stay. Takes the policy of `Task`.
        """
        words = _words(argv, "a command", "['ffmpeg', '-i', 'a.avi']")
        program = os.path.basename(words[0])  # noqa: PTH119 - a word, not a path to follow
        task = cls(_nothing, **{"name": program, "handler": program, **policy})
        task.argv = words
        return task

    def __repr__(self) -> str:
        pid = f" pid {self.identity.pid} ({self.identity.strength})" if self.identity else ""
        return f"<Task {self.id} {self.name!r} {self.state}{pid}>"

    # -- for its manager ---------------------------------------------------------------------------------------

    def _adopt(self, owner: Keeper) -> bytes:
        """Bind the task to its manager and return its call as bytes.

        Raises TaskAlreadyAdded, TaskNotPicklable; ValueError if the manager is not that of the tasks it comes after.
        """
        if self._manager is not None:
            raise TaskAlreadyAdded(f"{self!r} was added before; make a new task for each run")
        check_succession(self, owner)
        call = self._call
        if call is None:
            call = b"" if self.argv else pickle_call(self.name, self.fn, self.args, self.kwargs)
        self._manager, self._call = owner, None
        return call

    def _release(self, call: bytes | None = None) -> None:
        """Undo `adopt`. The next manager gets ``call``, whatever has become of the arguments; None: pickle anew."""
        self._manager, self._call = None, call

    def _report_progress(self, progress: Progress, also: OnProgress | None) -> None:
        """Keep how far it has come, and tell those who listen: its own listener, and the manager's."""
        self.progress = progress
        for listener in (self.on_progress, also):
            if listener is not None:
                try:
                    listener(self, progress)
                except Exception as error:  # One listener must not stop the others.
                    logger.error("a listener of the progress of %r raised", self, exc_info=error)


def check_listeners(**listeners: Callable[..., object] | None) -> None:
    """Raise TypeError unless each of them is None or a plain function."""
    for name, listener in listeners.items():
        if listener is not None and not callable(listener):
            raise TypeError(f"{name} is called, but {listener!r} cannot be")
        if inspect.iscoroutinefunction(listener):
            raise TypeError(f"{name} is called while the manager ticks, so it is a plain function; start a task in it")


def _seconds(expires_in: float | None) -> float | None:
    if expires_in is not None and not expires_in > 0:
        raise ValueError(f"expires_in is a number of seconds above 0, or None for ever, not {expires_in!r}")
    return expires_in


def _question(name: str, asked: Callable[[], bool] | None) -> Callable[[], bool] | None:
    if asked is not None and not callable(asked):
        raise TypeError(f"{name} is asked by calling it, but {asked!r} cannot be called")
    return asked


def _priority(priority: object) -> int:
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise TypeError(f"priority is a whole number, not {priority!r}")
    return priority


def _limits(limits: object) -> Limits | None:
    if limits is not None and not isinstance(limits, Limits):
        raise TypeError(f"limits is a Limits, such as Limits(cpu=60), not {limits!r}")
    return limits


def _tasks(after: object) -> tuple[Task, ...]:
    """Return the tasks that another is to come after. Raises TypeError."""
    found = tuple(after) if isinstance(after, Iterable) else (after,)
    for first in found:
        if not isinstance(first, Task):
            raise TypeError(f"after is a sequence of tasks, such as (first, second), but {first!r} is none")
    return found


def _innermost(fn: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(fn, functools.partial):
        fn = fn.func
    return fn


def _handler_of(fn: Callable[..., Any]) -> str:
    fn = _innermost(fn)
    module = getattr(fn, "__module__", None) or type(fn).__module__
    return f"{module}.{getattr(fn, '__qualname__', type(fn).__qualname__)}"


def _words(words: Sequence[str | os.PathLike[str]], what: str, example: str) -> tuple[str, ...]:
    read = () if isinstance(words, str | bytes) or not isinstance(words, Iterable) else tuple(words)
    if not read or not all(isinstance(word, str | os.PathLike) for word in read):
        raise TypeError(f"{what} is a sequence of texts, such as {example}, not {words!r}")
    return tuple(os.fspath(word) for word in read)


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    for name, value in env.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"the environment of a process is texts, not {name!r}: {value!r}")
    return dict(env)


def _nothing() -> None:
    """Stand in for the callable of a command."""
