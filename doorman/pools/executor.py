"""Executor of `concurrent.futures` whose calls run in proven processes, and the thread that runs its manager."""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import logging
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any, Final, TypeVar

from doorman.cores import available_cores
from doorman.errors import PoolFailed
from doorman.futures import IDLE_WAIT_S
from doorman.limits import worker_limits
from doorman.manager import KILL_TIMEOUT_S, ProcessManager
from doorman.pools.crew import Crew
from doorman.pools.process_per_call import ProcessPerCall
from doorman.task import check_listeners
from remit.errors import WouldDeadlock
from remit.options import check_count

if TYPE_CHECKING:
    from doorman.identity import Identity
    from doorman.limits import Limits
    from doorman.pools.call import Call, OnCallProgress
    from doorman.rules import Rule
    from remit import Location

logger = logging.getLogger("doorman")

START_POLL_S: Final = 1.0
"""Seconds between looks at a thread that starts its manager."""
EXIT_TIMEOUT_S: Final = 10.0
"""Seconds for which the interpreter's exit waits for unfinished calls, unless the executor has its own."""

Value = TypeVar("Value")

_manager_threads: weakref.WeakSet[ManagerThread] = weakref.WeakSet()
_exiting = threading.Event()


class ManagerThread:
    """The thread of an executor, which runs a manager and its pool.

    The thread holds no reference to the executor, so that an executor without users can be collected. It is a daemon
    thread, so that it does not keep the interpreter alive. ``exit_timeout`` is that of `ProcessExecutor`.
    """

    def __init__(
        self,
        make_manager: Callable[[], ProcessManager],
        make_pool: Callable[[ProcessManager], Crew | ProcessPerCall],
        exit_timeout: float | None,
    ) -> None:
        self._make_manager, self._make_pool = make_manager, make_pool
        self.exit_timeout = exit_timeout
        # Written by other threads, read by this one after each tick; `_call_soon` wakes it.
        self._finishing = self._killed = False
        self._pid = os.getpid()
        self._started = threading.Event()
        self._error: BaseException | None = None
        # Set in the thread before `start` returns. `submit` is the pool's own method: forwarding would cost each call.
        self.pool: Crew | ProcessPerCall
        self.submit: Callable[..., Call]
        self._thread = threading.Thread(target=self._run, name="doorman-executor", daemon=True)

    def start(self) -> None:
        """Start the thread and wait until its pool accepts calls. Raises the error of the manager or the pool."""
        self._thread.start()
        while not self._started.wait(START_POLL_S):
            if not self._thread.is_alive():
                raise RuntimeError("the thread of the executor ended before its manager had started")
        if self._error is not None:
            raise self._error

    def abandon(self) -> None:
        """End the thread as soon as it has started: an interrupt has ended `start`."""
        self._finishing = True
        pool = getattr(self, "pool", None)
        if pool is not None:
            pool.manager._call_soon(_wake)

    @property
    def alive(self) -> bool:
        """Whether the thread runs; False in a forked child."""
        return self._pid == os.getpid() and self._thread.is_alive()

    def finish(self, *, cancel: bool = False) -> None:
        """End the thread when all calls have finished; ``cancel`` those that wait. Safe from any thread."""
        if self.alive:
            self._finishing = True
            # Cancel in the manager's thread: there, the calls submitted before reach idle workers first.
            self.pool.manager._call_soon(self.pool._waiting.close if cancel else _wake)

    def stop_workers(self, *, kill: bool) -> None:
        """Stop the processes. Safe from any thread."""
        self.pool.manager._call_soon(lambda: self.pool.stop_workers(kill=kill))

    def join(self, timeout: float | None) -> bool:
        """Wait for the end of the thread, unless called in it; return False if it still runs."""
        if threading.get_ident() != self._thread.ident:  # A done callback runs in the thread and may call this.
            self._thread.join(None if timeout is None else max(0.0, timeout))
        return not self._thread.is_alive()

    def kill(self) -> None:
        """Kill the processes and end the thread now."""
        self._killed = True
        self.pool.manager._call_soon(_wake)
        self.join(KILL_TIMEOUT_S)

    def _run(self) -> None:
        """Thread: make the manager, tick it until the executor needs it no longer, close it."""
        with contextlib.ExitStack() as stack:
            try:
                # Leaving its block kills the processes that are left, however this thread ends.
                manager = stack.enter_context(self._make_manager())
                pool = self.pool = self._make_pool(manager)
                self.submit = pool.submit
            except BaseException as error:  # noqa: BLE001 - raised in the thread that called `start`
                self._error = error
                return
            finally:
                self._started.set()
            try:
                while not self._killed and not (self._finishing and not pool.busy):
                    try:
                        manager.tick()
                    except BaseException as error:
                        if isinstance(error, Exception):
                            raise
                        # That of a callback, since no signal interrupts this thread. The next tick continues.
                        logger.error("a callback ended a tick of the executor, which goes on", exc_info=error)
                    manager.wait(IDLE_WAIT_S)
                if self._killed:
                    pool.cancel_waiting()
                    pool.stop_workers(kill=True)
                pool.close()
            except BaseException as error:  # noqa: BLE001 - every wait for a call must end with it
                pool._give_up(PoolFailed(f"the thread of the executor failed: {error}"), error)


def _wake() -> None:
    """Do nothing: scheduling this function wakes the manager's thread."""


class ProcessExecutor(Executor):
    """A `concurrent.futures.Executor` whose calls run in proven processes. Safe from any thread.

    If a process dies, it is replaced, and only its running call fails, with `WorkerDied`: the executor does not break.
    Functions of the main script, lambdas and closures can be submitted. Processes start with the first call. Each
    future is a `Call`, whose ``worker`` is the `Identity` of the process that ran it.

    max_workers -- most processes at a time; default: the number of processors that this process may use
    location -- where the processes connect to this one, as for `ProcessManager`
    reuse -- whether a process runs many calls; False: a new process for each call
    max_tasks_per_child -- calls after which a process is replaced; None: never
    max_memory_per_child -- resident bytes after a call above which a process is replaced; None: never
    initializer, initargs -- called in each process before its first call; if it raises, all calls fail: PoolFailed
    limits -- what a call may use; see `Crew` and `Limits`
    on_progress -- called with a `Call` and each `Progress` that it reports, in the thread of the executor
    preload -- modules that are imported once for all processes
    rules -- conditions for starting another process; see `Rule`
    exit_timeout -- seconds for which the interpreter's exit waits for unfinished calls; None: no limit
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
            raise TypeError(f"the initializer must be callable, not {initializer!r}")
        if not reuse and (max_tasks_per_child, max_memory_per_child) != (None, None):
            raise ValueError(
                "with reuse=False each process runs one call: leave out max_tasks_per_child and max_memory_per_child"
            )
        if max_tasks_per_child is not None:
            check_count("max_tasks_per_child", max_tasks_per_child)
        # Since Python 3.13 users can set the number of processors.
        self.max_workers = max_workers or available_cores()
        # Checked here, to raise in the caller and not in the thread.
        check_listeners(on_progress=on_progress)
        worker_limits(limits)
        pool_options: dict[str, Any] = {"initializer": initializer, "initargs": tuple(initargs)}
        pool_options |= {"limits": limits, "on_progress": on_progress}
        if reuse:
            pool_options |= {"max_tasks_per_child": max_tasks_per_child, "max_memory_per_child": max_memory_per_child}
        pool_class: type[Crew | ProcessPerCall] = Crew if reuse else ProcessPerCall
        size = self.max_workers
        self._make_thread = functools.partial(
            ManagerThread,
            functools.partial(ProcessManager, location, preload=tuple(preload), rules=tuple(rules), **options),
            lambda manager: pool_class(manager, size, **pool_options),
            exit_timeout,
        )
        # Held by `submit` and `shutdown`: each call is queued before a shutdown and finishes, or is refused.
        # Re-entrant: a signal handler or a finalizer may call them at any line.
        self._lock = threading.RLock()
        self._starting = False
        self._manager_thread: ManagerThread | None = None
        self._shut_down = False
        self._pid = os.getpid()
        # Once, and not at the import: processes do not share a script that leaves exit hooks.
        atexit.unregister(_finish_all)
        atexit.register(_finish_all)

    def submit(self, fn: Callable[..., Value], /, *args: Any, **kwargs: Any) -> Future[Value]:
        """Call ``fn(*args, **kwargs)`` in a process and return the future of its result.

        The future of a call that cannot be pickled raises TaskNotPicklable. Raises RuntimeError after `shutdown` and in
        a forked child, PoolFailed, and the errors of `ProcessManager`.
        """
        if self._pid != os.getpid():
            raise RuntimeError("this executor belongs to the parent of this forked process: create a new one here")
        nested = self._lock._is_owned()  # type: ignore[attr-defined]
        try:
            with self._lock:
                if self._shut_down:
                    raise RuntimeError("cannot schedule new futures after shutdown")
                if _exiting.is_set():
                    raise RuntimeError("cannot schedule new futures after interpreter shutdown")
                return self._started_thread().submit(fn, *args, **kwargs)
        except BaseException:
            self._recover(nested=nested)
            raise

    def _started_thread(self) -> ManagerThread:
        """Return the thread; start it if there is none. Raises WouldDeadlock in a signal handler during the start."""
        if self._manager_thread is not None:
            return self._manager_thread
        if self._starting:
            raise WouldDeadlock("submit() interrupts the first submit(), which starts the processes: submit it later")
        self._starting = True
        if self._manager_thread is None:  # A nested call at the line above has started one.
            thread = self._make_thread()
            try:
                thread.start()
                _manager_threads.add(thread)
                # A collected executor gets no further calls: the thread finishes the calls that it has and ends.
                weakref.finalize(self, thread.finish).atexit = False
                self._manager_thread = thread
            except BaseException:
                thread.abandon()
                raise
        self._starting = False
        return self._manager_thread

    def _recover(self, *, nested: bool) -> None:
        """Release what an interrupt has left to this thread, as at the line that ends a `with` block."""
        if nested:
            return  # The outer call continues.
        self._starting = False
        while self._lock._is_owned():  # type: ignore[attr-defined]
            self._lock.release()

    def map(
        self,
        fn: Callable[..., Value],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Value]:
        """Yield ``fn`` of each item, in order; each call runs ``chunksize`` items.

        At most ``buffersize`` chunks are submitted ahead of the result that is yielded; None: all. Raises TimeoutError
        ``timeout`` seconds after the call. An exception of the function is raised in place of its result.
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
        futures = (self.submit(work, chunk) for chunk in chunks)
        return _in_order(deque(itertools.islice(futures, buffersize)), futures, deadline)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Refuse further calls, and end the processes when all calls have finished.

        ``wait`` waits for the end of the processes; ``cancel_futures`` cancels the waiting calls. May be called twice;
        does nothing in a forked child.
        """
        if self._pid != os.getpid():
            return
        nested = self._lock._is_owned()  # type: ignore[attr-defined]
        try:
            with self._lock:
                self._shut_down = True
                thread = self._manager_thread
        except BaseException:
            self._recover(nested=nested)
            raise
        if thread is None:
            return
        thread.finish(cancel=cancel_futures)
        if wait:
            thread.join(None)

    def terminate_workers(self) -> None:
        """Shut down and stop the processes now, by SIGTERM and, after the grace, SIGKILL. Their calls fail."""
        self._end_workers(kill=False)

    def kill_workers(self) -> None:
        """Shut down and stop the processes now, by SIGKILL. Their calls fail."""
        self._end_workers(kill=True)

    @property
    def workers(self) -> tuple[Identity, ...]:
        """The processes that run calls one after the other; none with ``reuse=False``."""
        pool = None if self._manager_thread is None else self._manager_thread.pool
        return pool.workers if isinstance(pool, Crew) else ()

    def _end_workers(self, *, kill: bool) -> None:
        self.shutdown(wait=False, cancel_futures=True)
        if self._manager_thread is not None and self._pid == os.getpid():
            self._manager_thread.stop_workers(kill=kill)


def _each(fn: Callable[..., Value], chunk: Sequence[tuple[Any, ...]]) -> list[Value]:
    """Call the function for each item of a chunk, in a worker."""
    return [fn(*args) for args in chunk]


def _chunks(items: Iterator[tuple[Any, ...]], size: int) -> Iterator[tuple[tuple[Any, ...], ...]]:
    while chunk := tuple(itertools.islice(items, size)):
        yield chunk


def _in_order(
    submitted: deque[Future[list[Value]]], futures: Iterator[Future[list[Value]]], deadline: float | None
) -> Iterator[Value]:
    """Yield the results of chunks in order and keep no reference to them; submit the next chunk after each."""
    try:
        while submitted:
            left = None if deadline is None else deadline - time.monotonic()
            results = submitted[0].result(left)
            submitted.popleft()
            submitted.extend(itertools.islice(futures, 1))
            results.reverse()
            while results:
                yield results.pop()
    finally:
        for future in submitted:
            future.cancel()


def _finish_all() -> None:
    """At the interpreter's exit: wait for all calls, up to the timeout of each executor."""
    _exiting.set()
    threads = [thread for thread in list(_manager_threads) if thread.alive]
    for thread in threads:
        thread.finish()
    began = time.monotonic()
    for thread in threads:
        timeout = thread.exit_timeout
        if not thread.join(None if timeout is None else began + timeout - time.monotonic()):
            print(  # noqa: T201 - at exit there is no caller to raise to
                f"doorman: {thread.pool._unfinished} calls were unfinished {timeout} s after the interpreter began to "
                "exit; their processes are killed",
                file=sys.stderr,
            )
            thread.kill()
