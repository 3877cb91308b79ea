"""Executor: the standard library's interface to a pool, with proven processes behind it."""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any, Final, TypeVar

from doorman._scheduler.base_manager import check_listeners
from doorman.errors import PoolFailed
from doorman.limits import worker_limits
from doorman.manager import KILL_TIMEOUT_S, ProcessManager
from doorman.pools.crew import Crew
from doorman.pools.process_per_call import ProcessPerCall
from remit.transport import register_after_fork

if TYPE_CHECKING:
    from doorman.identity import Identity
    from doorman.limits import Limits
    from doorman.pools.call import Call, OnCallProgress
    from doorman.rules import Rule
    from remit import Location

__all__ = ["ManagerThread", "ProcessExecutor"]


IDLE_WAIT_S: Final = 60.0
"""Seconds that the thread sleeps at a time at the most; whatever happens wakes it."""


class ManagerThread:
    """A manager and what gives its processes calls, in a thread of their own. Knows nothing of its executor.

    ``begun`` are the options of the crew. The thread is a daemon: it can never keep the interpreter from its end.
    """

    exit_timeout: float | None = None

    def __init__(
        self,
        location: str | Location | None,
        options: Mapping[str, Any],
        size: int,
        *,
        reuse: bool,
        begun: Mapping[str, Any],
    ) -> None:
        self._location, self._options, self._size = location, options, size
        self._reuse, self._begun = reuse, begun
        self._finishing = self._abandoned = self._forked = False
        self._started = threading.Event()
        self._error: BaseException | None = None
        self._pool: Crew | ProcessPerCall | None = None
        self.submit: Callable[..., Call]
        """Wants a call, from any thread."""
        self._thread = threading.Thread(target=self._run, name="doorman-executor", daemon=True)

    def start(self) -> None:
        """Start the thread, and raise what kept it from making its manager."""
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            raise self._error

    @property
    def alive(self) -> bool:
        """Whether the thread runs, in this very process."""
        return not self._forked and self._thread.is_alive()

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is the driver's own."""
        return threading.current_thread() is self._thread

    @property
    def pool(self) -> Crew | ProcessPerCall:
        """What gives calls to processes."""
        assert self._pool is not None
        return self._pool

    @property
    def workers(self) -> tuple[Identity, ...]:
        """The processes that are used again."""
        return self._pool.workers if isinstance(self._pool, Crew) else ()

    @property
    def unfinished(self) -> int:
        """How many calls wait or run."""
        return self.pool._unfinished

    def finish(self, *, cancel: bool = False) -> None:
        """End the thread when all that was submitted has ended; with ``cancel``, all that runs. From any thread."""
        if self.alive:
            self._finishing = True
            # In the thread, and so in turn: what was submitted before is given to whoever is idle before that.
            self.pool.manager._call_soon(self.pool._cancel_rest if cancel else _nothing)

    def stop_workers(self, *, kill: bool) -> None:
        """Have the processes stopped. From any thread."""
        self.pool.manager._call_soon(lambda: self.pool.stop_workers(kill=kill))

    def join(self, timeout: float | None) -> bool:
        """Wait for the thread's end; False after ``timeout`` seconds."""
        self._thread.join(None if timeout is None else max(0.0, timeout))
        return not self._thread.is_alive()

    def kill(self) -> None:
        """End the thread and everything that runs, now."""
        self._abandoned = True
        self.pool.manager._call_soon(_nothing)
        self.join(KILL_TIMEOUT_S)

    def forked(self) -> None:
        """In a fork: all of it is the parent's."""
        self._forked = True

    def _run(self) -> None:
        """Thread: make the manager, tick it until nobody needs it any more, end it."""
        try:
            manager = ProcessManager(self._location, **self._options)
        except BaseException as error:  # noqa: BLE001 - raised in the thread that wanted it
            self._error = error
            self._started.set()
            return
        with manager:
            try:
                make = Crew if self._reuse else ProcessPerCall
                self._pool = make(manager, self._size, **self._begun)
                self.submit = self._pool.submit
            except BaseException as error:  # noqa: BLE001 - the same
                self._error = error
                return
            finally:
                self._started.set()
            try:
                self._drive(manager, self._pool)
            except Exception as error:  # noqa: BLE001 - whatever it is, whoever waits for a call has to know
                self._pool._give_up(PoolFailed(f"what drives the processes failed: {error}"), error)

    def _drive(self, manager: ProcessManager, pool: Crew | ProcessPerCall) -> None:
        while not self._abandoned and not (self._finishing and not pool.busy):
            manager.tick()
            manager.wait(IDLE_WAIT_S)
        if self._abandoned:
            pool.cancel_waiting()
            pool.stop_workers(kill=True)
        pool.close()


def _nothing() -> None:
    """Wake the thread; it sees itself what has changed."""


EXIT_TIMEOUT_S: Final = 10.0
"""Seconds for which the interpreter's exit waits for calls that wait or run, unless told otherwise."""

Value = TypeVar("Value")

_manager_threads: weakref.WeakSet[ManagerThread] = weakref.WeakSet()
_exiting = threading.Event()


class ProcessExecutor(Executor):
    """A `concurrent.futures.Executor` whose calls run in proven processes. Usable from any thread.

    One process that dies fails the call that it was running with `WorkerDied`, and is replaced: the executor never
    breaks by that. Functions of the main script, lambdas and closures can be submitted. Nothing starts before the first
    call. Futures are `Call`: their ``worker`` is the `Identity` of the process that ran them.

    max_workers -- processes at a time at the most; default: the processors that this process may use
    location -- where the processes speak to this one, as for `ProcessManager`
    reuse -- whether a process serves one call after the other; False: a fresh one for each call
    max_tasks_per_child -- calls after which a process is replaced; None: never
    max_memory_per_child -- bytes resident after a call above which a process is replaced; None: never
    initializer, initargs -- called in each process before its first call; if it raises, all calls fail: PoolFailed
    limits -- what a call may use; see `Crew` and `Limits`
    on_progress -- called with a `Call` and each `Progress` that it reports, in a thread of the executor's
    preload -- modules that are imported once for all processes
    rules -- may another process start now; see `Rule`
    exit_timeout -- seconds for which the interpreter's exit waits for what is unfinished; None: for ever
    options -- further options of `ProcessManager`

    Raises ValueError, TypeError.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        location: str | Location | None = None,
        reuse: bool = True,
        max_tasks_per_child: int | None = None,
        max_memory_per_child: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Sequence[Any] = (),
        limits: Limits | None = None,
        on_progress: OnCallProgress | None = None,
        preload: Sequence[str] = (),
        rules: Iterable[Rule] = (),
        exit_timeout: float | None = EXIT_TIMEOUT_S,
        **options: Any,
    ) -> None:
        if max_workers is not None and max_workers <= 0:
            raise ValueError(f"max_workers must be greater than 0, not {max_workers!r}")
        if initializer is not None and not callable(initializer):
            raise TypeError(f"an initializer is called, but {initializer!r} cannot be")
        if not reuse and (max_tasks_per_child, max_memory_per_child) != (None, None):
            raise ValueError("with reuse=False each process serves one call: give no max_..._per_child")
        if max_tasks_per_child is not None and max_tasks_per_child < 1:
            raise ValueError(f"max_tasks_per_child is at least 1, not {max_tasks_per_child!r}")
        self.max_workers = max_workers or _processors()
        check_listeners(on_progress=on_progress)
        begun: dict[str, Any] = {"initializer": initializer, "initargs": tuple(initargs)}
        worker_limits(limits)  # Raises what is wrong with it here, not in the thread.
        begun |= {"limits": limits, "on_progress": on_progress}
        if reuse:
            begun |= {"max_tasks_per_child": max_tasks_per_child, "max_memory_per_child": max_memory_per_child}
        options = {"preload": tuple(preload), "rules": tuple(rules), **options}
        self._make = functools.partial(ManagerThread, location, options, self.max_workers, reuse=reuse, begun=begun)
        self._exit_timeout = exit_timeout
        self._lock = threading.Lock()
        self._manager_thread: ManagerThread | None = None
        self._shut = False
        self._owner = os.getpid()

    def submit(self, fn: Callable[..., Value], /, *args: Any, **kwargs: Any) -> Future[Value]:
        """Call ``fn(*args, **kwargs)`` in a process; return the future of its result.

        What cannot travel to a process is told by the future: TaskNotPicklable. Raises RuntimeError after `shutdown`
        and in a fork, PoolFailed, and what `ProcessManager` raises.
        """
        if self._owner != os.getpid():
            raise RuntimeError("this executor came with a fork and belongs to the parent: make a new one here")
        with self._lock:
            if self._shut:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if _exiting.is_set():
                raise RuntimeError("cannot schedule new futures after interpreter shutdown")
            if self._manager_thread is None:
                self._manager_thread = self._start()
            return self._manager_thread.submit(fn, *args, **kwargs)

    def map(
        self,
        fn: Callable[..., Value],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Value]:
        """Yield ``fn`` of each item, in order; ``chunksize`` items travel, and run, together.

        ``buffersize`` bounds how many chunks are under way whose results were not taken yet; None: all at once. Raises
        TimeoutError ``timeout`` seconds after the call, and in its place what the function raised.
        """
        if chunksize < 1:
            raise ValueError(f"chunksize must be >= 1, not {chunksize!r}")
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError(f"buffersize must be an integer or None, not {buffersize!r}")
        if buffersize is not None and buffersize < 1:
            raise ValueError(f"buffersize must be None or > 0, not {buffersize!r}")
        deadline = None if timeout is None else time.monotonic() + timeout
        chunks = _chunks(zip(*iterables, strict=False), chunksize)
        work = functools.partial(_each, fn)
        submitted = deque(self.submit(work, chunk) for chunk in itertools.islice(chunks, buffersize))
        more = None if buffersize is None else functools.partial(self._next_of, chunks, work)
        return _in_order(submitted, more, deadline)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; end when those that were taken have ended, or with ``cancel_futures`` those that run.

        ``wait`` until then. May be called twice; does nothing in a fork.
        """
        if self._owner != os.getpid():
            return
        with self._lock:
            self._shut = True
            driver = self._manager_thread
        if driver is None:
            return
        driver.finish(cancel=cancel_futures)
        if wait and not driver.is_current:
            driver.join(None)

    def terminate_workers(self) -> None:
        """Stop the processes now, by SIGTERM and after the grace SIGKILL, and shut down; their calls fail."""
        self._end_workers(kill=False)

    def kill_workers(self) -> None:
        """Stop the processes now, by SIGKILL, and shut down; their calls fail."""
        self._end_workers(kill=True)

    @property
    def workers(self) -> tuple[Identity, ...]:
        """The processes that exist now, where they are used again."""
        return () if self._manager_thread is None else self._manager_thread.workers

    def _next_of(self, chunks: Iterator[Any], work: Callable[..., list[Value]]) -> Future[list[Value]] | None:
        chunk = next(chunks, None)
        return None if chunk is None else self.submit(work, chunk)

    def _end_workers(self, *, kill: bool) -> None:
        self.shutdown(wait=False, cancel_futures=True)
        if self._manager_thread is not None and self._owner == os.getpid():
            self._manager_thread.stop_workers(kill=kill)

    def _start(self) -> ManagerThread:
        """Start the thread that drives the manager. What keeps this from working is raised here."""
        driver = self._make()
        driver.start()
        driver.exit_timeout = self._exit_timeout
        _manager_threads.add(driver)
        # When nobody can submit any more, the rest is done, and the thread ends.
        weakref.finalize(self, driver.finish).atexit = False
        return driver


def _processors() -> int:
    count = getattr(os, "process_cpu_count", None)
    if count is not None:
        return count() or 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _each(fn: Callable[..., Value], chunk: Sequence[tuple[Any, ...]]) -> list[Value]:
    """In a worker: call it for each item of a chunk."""
    return [fn(*args) for args in chunk]


def _chunks(items: Iterator[tuple[Any, ...]], size: int) -> Iterator[tuple[tuple[Any, ...], ...]]:
    while chunk := tuple(itertools.islice(items, size)):
        yield chunk


def _in_order(
    submitted: deque[Future[list[Value]]],
    more: Callable[[], Future[list[Value]] | None] | None,
    deadline: float | None,
) -> Iterator[Value]:
    """Yield the results of chunks in order, and keep none that was yielded; for each that was taken want another."""
    try:
        while submitted:
            left = None if deadline is None else deadline - time.monotonic()
            results = submitted[0].result(left)
            submitted.popleft()
            if more is not None and (another := more()) is not None:
                submitted.append(another)
            results.reverse()
            while results:
                yield results.pop()
    finally:
        for future in submitted:
            future.cancel()


def _finish_all() -> None:
    """At the interpreter's exit: what was submitted is done, within each executor's bound."""
    _exiting.set()
    here = [driver for driver in list(_manager_threads) if driver.alive]
    for driver in here:
        driver.finish()
    began = time.monotonic()
    for driver in here:
        timeout = driver.exit_timeout
        if not driver.join(None if timeout is None else began + timeout - time.monotonic()):
            print(  # noqa: T201 - nobody is left to be told otherwise
                f"doorman: {driver.unfinished} calls were unfinished {timeout} s after the interpreter began to exit; "
                "their processes are stopped",
                file=sys.stderr,
            )
            driver.kill()


def _after_fork_in_child() -> None:
    for driver in list(_manager_threads):
        driver.forked()
    _manager_threads.clear()


atexit.register(_finish_all)
register_after_fork(_after_fork_in_child)
