"""Calls between an event loop and other threads: blocking calls of the loop, and callbacks of threads on the loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any, Final, TypeVar

from remit.errors import LinkClosed

logger = logging.getLogger("remit")

LOOP_CHECK_INTERVAL_S: Final = 0.5
"""Interval at which a thread that waits for a loop checks whether the loop was closed."""
T = TypeVar("T")
_current_call: ContextVar[Future[None] | None] = ContextVar("remit_call", default=None)


def on_running_loop(source: Future[T]) -> asyncio.Future[T]:
    """Return a future of the running loop with the outcome of ``source``. Cancelling it cancels ``source``."""
    # asyncio.wrap_future() would log an error if the loop is closed before the outcome arrives.
    loop = asyncio.get_running_loop()
    target: asyncio.Future[T] = loop.create_future()

    def copy() -> None:
        if target.done():
            return
        if source.cancelled():
            target.cancel()
        elif (error := source.exception()) is not None:
            target.set_exception(error)
        else:
            target.set_result(source.result())

    def ended(_: object) -> None:
        with contextlib.suppress(RuntimeError):  # The loop is closed already.
            for _ in range(2):  # A loop logs an exception of a signal handler in a callback, and goes on.
                loop.call_soon_threadsafe(copy)

    source.add_done_callback(ended)
    target.add_done_callback(lambda done: source.cancel() if done.cancelled() else None)
    return target


def call_in_thread(call: Callable[[], T]) -> asyncio.Future[T]:
    """Run ``call`` in a daemon thread; return the future of its result. Cancelling it does not stop the call."""
    # Not in the default executor of the loop: calls of the user may occupy all its threads, and wait for this one.
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()

    def run() -> None:
        try:
            value = call()
        except BaseException as error:  # noqa: BLE001 - raised where the future is awaited
            outcome.set_exception(error)
        else:
            outcome.set_result(value)

    threading.Thread(target=run, name="remit-call", daemon=True).start()
    return on_running_loop(outcome)


async def finish_uncancelled(future: asyncio.Future[T], hurry: Callable[[], object] = lambda: None) -> T:
    """Wait until ``future`` is done. A cancellation of this wait calls ``hurry``, and takes effect only then."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])  # Cancelling this wait does not cancel the future.
        except asyncio.CancelledError as error:
            cancelled = error
            hurry()
    if cancelled is None:
        return future.result()
    if not future.cancelled() and (failed := future.exception()) is not None:
        cancelled.add_note(f"and before that: {failed}")
        logger.error("the end of a cancelled call: %s", failed)  # asyncio.run() drops the CancelledError and its notes.
    raise cancelled


class BlockOwner:
    """The task within the block of an asynchronous context manager, which a failure behind it cancels.

    As with TaskGroup, the block then raises the failure instead of the cancellation.
    """

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._cancelled = False

    def cancel(self) -> None:
        """Cancel the block, unless it is being left."""
        if self._task is not None and not self._cancelled:
            self._cancelled = True
            self._task.cancel()

    def leave(self, error: BaseException | None) -> bool:
        """Note the end of the block. Return True if it raises ``error`` only because it was cancelled, or nothing."""
        task, self._task = self._task, None
        if task is not None and self._cancelled:
            task.uncancel()
        return error is None or (self._cancelled and isinstance(error, asyncio.CancelledError))


class LoopCalls:
    """Runs callbacks of other threads on the event loop that uses a client at present, and waits for their end."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._changed = threading.Condition()
        self._closed = False

    def use_running_loop(self) -> bool:
        """Run callbacks on the running loop from now on. Return whether it is another loop than before.

        Raises RuntimeError while the other loop runs.
        """
        loop = asyncio.get_running_loop()
        if loop is self.loop:
            return False
        with self._changed:
            if self.loop is not None and self.loop.is_running():
                raise RuntimeError("another running event loop uses this AsyncClient: create one for each loop")
            self.loop = loop
            self._changed.notify_all()
        return True

    def wrap(self, function: Callable[..., Any]) -> Callable[..., None]:
        """Return a callback that runs ``function``, plain or async, on the loop. Without a loop it waits for one."""
        if not callable(function):
            raise TypeError(f"a callback must be callable, not {function!r}")

        @functools.wraps(function)
        def call_on_loop(*args: Any, **kwargs: Any) -> None:
            call = functools.partial(function, *args, **kwargs)
            while True:
                loop, outcome = self._wait_for_loop(), Future[None]()
                try:
                    loop.call_soon_threadsafe(_begin, loop, call, outcome)
                except RuntimeError:  # Closed in between.
                    continue
                if self._wait_until_done(loop, outcome):
                    return outcome.result()

        return call_on_loop

    def notify(self, function: Callable[..., Any], *args: Any) -> None:
        """Call ``function`` soon on the loop, without waiting for it; in this thread if there is no loop."""
        loop = self.loop
        if loop is not None and not self._closed:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(function, *args)
                return
        function(*args)

    def release_caller(self) -> None:
        """Let the thread go on that waits for the listener which calls this: the listener closes the client."""
        outcome = _current_call.get()
        if outcome is not None and not outcome.done():
            outcome.set_result(None)

    def close(self) -> None:
        """End the waits for a loop."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _wait_for_loop(self) -> asyncio.AbstractEventLoop:
        warned = False
        with self._changed:
            while (loop := self.loop) is None or loop.is_closed():
                if self._closed:
                    raise LinkClosed("the client was closed before an event loop could run the listener")
                if not self._changed.wait(LOOP_CHECK_INTERVAL_S) and not warned:
                    warned = True
                    logger.warning(
                        "an event waits for an event loop to run its listener: use the AsyncClient on the loop that "
                        "runs now, for example by `await client.start()`"
                    )
        return loop

    def _wait_until_done(self, loop: asyncio.AbstractEventLoop, outcome: Future[None]) -> bool:
        """Return True if the call has ended; False if another loop must run it."""
        while True:
            with contextlib.suppress(TimeoutError):
                outcome.exception(LOOP_CHECK_INTERVAL_S)
                return True
            # A call that has begun cannot be withdrawn: its task ends with its loop.
            if (self._closed or loop.is_closed() or loop is not self.loop) and outcome.cancel():
                return False
            if loop.is_closed():
                raise RuntimeError("the event loop was closed before the listener had ended")


def _begin(loop: asyncio.AbstractEventLoop, call: Callable[[], Any], outcome: Future[None]) -> None:
    if not outcome.set_running_or_notify_cancel():
        return
    try:
        value = call()
    except Exception as error:  # noqa: BLE001 - raised in the waiting thread
        outcome.set_exception(error)
        return
    except BaseException as error:
        outcome.set_exception(error)
        raise
    if not inspect.isawaitable(value):
        outcome.set_result(None)
        return

    def end(task: asyncio.Task[Any]) -> None:
        if outcome.done():
            return
        if task.cancelled():
            outcome.set_exception(RuntimeError("the event loop cancelled the listener"))
        elif (error := task.exception()) is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(None)

    async def run() -> None:
        _current_call.set(outcome)
        await value

    loop.create_task(run()).add_done_callback(end)
