"""Life: what becomes of a task: where it stands, how it ended, and those who wait for that."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, Self

from doorman.errors import IdentityRefused, RestartedTooOften, TaskCancelled, TaskExpired
from doorman.futures import TaskFuture, future_of
from doorman.identity import Identity
from doorman.keeper import Keeper
from doorman.output.lines import Line
from doorman.policy.retry import Comeback
from doorman.progress import Progress
from doorman.states import ENDED, State, legal

__all__ = ["Life"]


class Life:
    """The part of a `Task` that changes. Users read it and wait for its end; its manager alone moves it on."""

    name: str
    expires_in: float | None
    comeback: Comeback
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
        self.bound: TaskFuture | None = None
        """Its `future`, once somebody has asked for it."""
        self._owner: Keeper | None = None
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
            self._kept().run_until(self, timeout)
        return self._error

    @property
    def future(self) -> TaskFuture:
        """A `concurrent.futures.Future` of its result, always the same one, for any thread to wait for or to cancel."""
        return future_of(self)

    def __await__(self) -> Generator[Any, None, Any]:
        """Wait on the event loop that ticks its manager, and return or raise what `result` does."""
        if not self.done():
            yield from self._kept().ended(self).__await__()
        return self.result()

    def cancel(self) -> bool:
        """Drop it if it waits, stop it if it runs; False if it has ended."""
        return self._owner is not None and self._owner.cancel(self)

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

    def next_try(
        self, state: State, value: Any, error: BaseException | None, *, wanted: bool
    ) -> tuple[State, Any, BaseException | None, float | None]:
        """Wait again after an attempt that ended so, if the policy says so and it is still ``wanted``.

        Returns how the task ends, which may be otherwise than its attempt; or at last the seconds until its next try.
        """
        wanted = wanted and not self._killed
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

    def when_ended(self, tell: Callable[[Self], object]) -> None:
        """Have ``tell(task)`` called at its end, or at once if it has ended. It must not raise."""
        if self.done():
            tell(self)
        else:
            self._watchers.append(tell)

    @property
    def outcome(self) -> tuple[Any, BaseException | None]:
        """The value and the error that it ended with."""
        return self._value, self._error

    @property
    def owner(self) -> Keeper | None:
        """The manager that it was added to."""
        return self._owner

    def _kept(self) -> Keeper:
        """Return the manager that makes progress with it. Raises ValueError."""
        if self._owner is None:
            raise ValueError(f"{self!r} has not been added to a manager")
        return self._owner
