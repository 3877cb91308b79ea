"""Runs the same calls in a pool of multiprocessing or of Doorman: `tests/doorman/test_scripts.py`."""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from typing import Any

SECONDS = 60.0


def check(calls: Callable[[Any], object], *, initializer: Callable[..., object] | None = None) -> None:
    """Call ``calls`` with a pool of one process for each kind of the program's first argument."""
    for kind in sys.argv[1].split(","):
        print(f"== {kind}", flush=True)
        with _pool(kind, initializer) as pool:
            calls(pool)


def shown(future: Future[Any]) -> object:
    """Return the result of a call, or the type and the text of its exception."""
    error = future.exception(SECONDS)
    return future.result() if error is None else f"{type(error).__name__}: {error}"


def outcome(fn: Callable[..., Any], *args: Any) -> object:
    """Return the result of any function in a new process, also of those that multiprocessing cannot pickle."""
    if sys.argv[1] in ("fork", "spawn"):
        receiver, sender = multiprocessing.Pipe(duplex=False)
        forked = multiprocessing.get_context("fork").Process(target=lambda: sender.send(fn(*args)))
        forked.start()
        return receiver.recv()
    from doorman import ProcessManager, Task

    with ProcessManager() as manager:
        return manager.add_task(Task(fn, *args)).result(SECONDS)


@contextlib.contextmanager
def _pool(kind: str, initializer: Callable[..., object] | None) -> Iterator[Any]:
    if kind in ("fork", "spawn"):
        context = multiprocessing.get_context(kind)
        with ProcessPoolExecutor(1, mp_context=context, initializer=initializer) as pool:
            yield pool
        return
    from doorman import ProcessExecutor

    if kind == "tasks":
        with _Tasks(initializer) as tasks:
            yield tasks
    else:
        with ProcessExecutor(1, initializer=initializer, reuse=kind == "executor") as executor:
            yield executor


class _Tasks(Executor):
    """Tasks of a group manager, each run to its end by the caller."""

    def __init__(self, initializer: Callable[..., object] | None) -> None:
        from doorman import GroupManager, ProcessManager

        self._manager = GroupManager(ProcessManager(initializer=initializer))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        from doorman import Task

        task = self._manager.add_task(Task(fn, *args, kwargs=kwargs))
        task.exception(SECONDS)
        return task.future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        assert threading.current_thread() is threading.main_thread()
        self._manager.close()
