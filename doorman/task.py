"""Task: what is wanted: a callable or a command, and its policy. What exists is the manager's business."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import pickle
import reprlib
import signal
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import cloudpickle

from doorman.errors import (
    IdentityRefused,
    RestartedTooOften,
    TaskAlreadyAdded,
    TaskCancelled,
    TaskExpired,
    TaskNotPicklable,
)
from doorman.futures import TaskFuture, future_of
from doorman.owner import Owner, check_listeners
from doorman.policy.dependencies import check_owners, checked
from doorman.policy.limits import Limits
from doorman.policy.retry import Backoff, Comeback, Intensity, Restart
from doorman.states import ENDED, State, legal

if TYPE_CHECKING:
    from pathlib import Path

    from doorman.identity import Identity
    from doorman.output.lines import Line
    from doorman.output.stream import OnOutput
    from doorman.progress import OnProgress, Progress

__all__ = ["Owner", "Task"]

_numbers = itertools.count(1)
_shown = reprlib.Repr()  # Not repr(): that may be as long as the value, or raise.
_shown.maxother = _shown.maxstring = 120


class Task:
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
        if expires_in is not None and not expires_in > 0:
            raise ValueError(f"expires_in is a number of seconds above 0, or None for ever, not {expires_in!r}")
        check_listeners(on_output=on_output, on_progress=on_progress)
        if detach and (stream or on_output is not None):
            raise ValueError(
                "a detached process outlives the pipes of its manager: give the manager a log_path instead"
            )
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise TypeError(f"priority is a whole number, not {priority!r}")
        if limits is not None and not isinstance(limits, Limits):
            raise TypeError(f"limits is a Limits, such as Limits(cpu=60), not {limits!r}")
        for question, asked in (("can_run", can_run), ("cancel_when", cancel_when)):
            if asked is not None and not callable(asked):
                raise TypeError(f"{question} is asked by calling it, but {asked!r} cannot be called")
        self.fn, self.args, self.kwargs = fn, args, dict(kwargs or {})
        self.argv: tuple[str, ...] = ()
        self.id = f"{next(_numbers)}"
        self.name = name or str(getattr(_innermost(fn), "__name__", type(fn).__name__))
        self.handler = handler or _handler_of(fn)
        self.expires_in = expires_in
        self.ignores_rules = ignores_rules
        self.stops_siblings = stops_siblings
        self.can_run = can_run
        self.cancel_when = cancel_when
        self.retries = retries
        self.backoff, self.restart, self.intensity = backoff, restart, intensity
        self.comeback = Comeback(retries=retries, backoff=backoff, restart=restart, intensity=intensity)
        self.priority = priority
        self.after = checked(after)
        self.limits = limits
        self.detach = detach
        self.stream, self.on_output, self.on_progress = stream, on_output, on_progress
        self.wrapper = _words(wrapper, "a wrapper", "('nice', '-n', '10')") if wrapper else ()
        self.cwd = None if cwd is None else os.path.abspath(os.fsdecode(cwd))  # noqa: PTH100 - keeps links
        self.env = None if env is None else _environment(env)
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
        self.bound: TaskFuture | None = None
        self.lines: Sequence[Line] = ()
        """The last lines that it wrote, if they are streamed."""
        self.progress: Progress | None = None
        """How far it has come, as it last reported with ``current_task().progress(...)``."""
        self._owner: Owner | None = None
        self._watchers: list[Callable[[Task], object]] = []
        self._call: bytes | None = None
        self._started: float | None = None
        self._ended: float | None = None
        self._value: Any = None
        self._error: BaseException | None = None

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
            if self._owner is None:
                raise ValueError(f"{self!r} has not been added to a manager")
            self._owner.run_until(self, timeout)
        return self._error

    @property
    def future(self) -> TaskFuture:
        """A `concurrent.futures.Future` of its result, always the same one, for any thread to wait for or to cancel."""
        return future_of(self)

    def __await__(self) -> Generator[Any, None, Any]:
        """Wait on the event loop that ticks its manager, and return or raise what `result` does."""
        if not self.done():
            if self._owner is None:
                raise ValueError(f"{self!r} has not been added to a manager")
            yield from self._owner.ended(self).__await__()
        return self.result()

    def cancel(self) -> bool:
        """Drop it if it waits, stop it if it runs; False if it has ended."""
        return self._owner is not None and self._owner.cancel(self)

    def stop(self, *, kill: bool = False) -> bool:
        """Like `cancel`; with ``kill`` a proven process gets SIGKILL at once, and the task fails with WorkerDied."""
        if kill and self.identity is not None and not self.done():
            with contextlib.suppress(IdentityRefused), self.identity.open() as process:  # Else it has just ended.
                return process.signal_group(signal.SIGKILL)
        return self.cancel()

    @property
    def duration(self) -> float | None:
        """Seconds from its start to its end, or until now; None before its start."""
        if self._started is None:
            return None
        return (time.monotonic() if self._ended is None else self._ended) - self._started

    @property
    def owner(self) -> Owner | None:
        """The manager that it was added to."""
        return self._owner

    def __repr__(self) -> str:
        pid = f" pid {self.identity.pid} ({self.identity.strength})" if self.identity else ""
        return f"<Task {self.id} {self.name!r} {self.state}{pid}>"

    # -- for its manager ---------------------------------------------------------------------------------------

    @property
    def outcome(self) -> tuple[Any, BaseException | None]:
        """The value and the error that it ended with."""
        return self._value, self._error

    def adopt(self, owner: Owner) -> bytes:
        """Bind the task to its manager and return its call as bytes.

        Raises TaskAlreadyAdded, TaskNotPicklable; ValueError if the manager is not that of the tasks it comes after.
        """
        if self._owner is not None:
            raise TaskAlreadyAdded(f"{self!r} was added before; make a new task for each run")
        check_owners(self, owner)
        call = self._call if self._call is not None else b"" if self.argv else self._pickled()
        self._owner, self._call = owner, None
        return call

    def release(self, call: bytes | None = None) -> None:
        """Undo `adopt`. The next manager gets ``call``, whatever has become of the arguments; None: pickle anew."""
        self._owner, self._call = None, call

    def enter(self, state: State) -> None:
        """Go to another state; the only place where it changes."""
        if not legal(self.state, state):
            raise AssertionError(f"a task cannot go from {self.state} to {state}")
        self.state = state
        if state is State.RUNNING:
            self._started, self._ended = time.monotonic(), None
        elif state in ENDED:
            self._ended = time.monotonic()
        if self.bound is not None:
            self.bound.follow()

    def began(self, moment: float) -> None:
        """Count its duration from this moment of the monotonic clock: it began under a manager before."""
        self._started = moment

    def end(self, state: State, value: Any = None, error: BaseException | None = None) -> None:
        """Go to a state that is an end, with what `result` returns or raises."""
        if error is None and state is State.CANCELLED:
            error = TaskCancelled(f"task {self.name!r} was cancelled")
        if error is None and state is State.EXPIRED:
            error = TaskExpired(f"task {self.name!r} ran for more than {self.expires_in} s")
        self._value, self._error = value, error
        self.enter(state)
        watchers, self._watchers = self._watchers, []
        for tell in watchers:
            tell(self)

    def next_try(
        self, state: State, value: Any, error: BaseException | None, *, wanted: bool
    ) -> tuple[State, Any, BaseException | None, float | None]:
        """Wait again after an attempt that ended so, if the policy says so and it is still ``wanted``.

        Returns how the task ends, which may be otherwise than its attempt; or at last the seconds until its next try.
        """
        ran = None if self.identity is None else self.duration
        try:
            now = time.monotonic()
            pause = self.comeback.pause(state, error, attempt=self.attempt, ran=ran, now=now) if wanted else None
        except RestartedTooOften as often:
            return State.FAILED, None, often, None
        if pause is not None:
            self.identity = None
            self.enter(State.WAITING)
        return state, value, error, pause

    def when_ended(self, tell: Callable[[Task], object]) -> None:
        """Have ``tell(task)`` called at its end, or at once if it has ended. It must not raise."""
        if self.done():
            tell(self)
        else:
            self._watchers.append(tell)

    def _pickled(self) -> bytes:
        try:
            call: bytes = cloudpickle.dumps((self.fn, self.args, self.kwargs), protocol=pickle.HIGHEST_PROTOCOL)
            return call
        except Exception as error:
            raise TaskNotPicklable(
                f"task {self.name!r} cannot travel to a process: {self._culprit()}: {error}; "
                "give it plain values, and open files, locks and connections inside the task"
            ) from error

    def _culprit(self) -> str:
        parts = [("its callable", self.fn), *((f"argument {n}", a) for n, a in enumerate(self.args, 1))]
        parts += [(f"argument {name}=", value) for name, value in self.kwargs.items()]
        for place, part in parts:
            try:
                cloudpickle.dumps(part)
            except Exception:  # noqa: BLE001 - pickling runs code of the user's, which may raise anything
                return f"{place} {_shown.repr(part)}"
        return "its parts together"


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
