"""The driver that ticks a manager on an asyncio event loop.

A thread waits for the manager's descriptors, and the loop ticks the manager. Both take turns, so that no state of the
manager is used by two threads. A cancelled ``await`` changes nothing: the loop goes on ticking.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from itertools import chain, starmap
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final

from doorman.futures import IDLE_WAIT_S
from remit._internal_asyncio import AsyncListeners, BlockOwner, call_in_thread, finish_uncancelled
from remit.transport import DaemonThread, next_item

if TYPE_CHECKING:
    from doorman._scheduler.base_manager import BaseManager
    from doorman.task import Task

logger = logging.getLogger("doorman")

JOIN_TIMEOUT_S: Final = 5.0
"""Longest wait for the thread, which was woken, at the end of a driver."""


class LoopDriver:
    """Ticks one manager, and so those inside it, on the running loop whenever there is work."""

    def __init__(self, manager: BaseManager) -> None:
        self._manager = manager
        self._server = manager.server
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._idle: set[asyncio.Future[None]] = set()
        # An entry stays until its task ends, even without waits: see `wait_ended`.
        self._awaited: dict[Task, set[asyncio.Future[None]]] = {}
        self._error: BaseException | None = None
        self._owner = BlockOwner()
        self._detached = False
        self.tick_scheduled = False
        """Whether a tick was requested that has not begun."""
        self.ticking = False
        """Whether a tick of this driver runs now."""
        # The turn is one element: in `_due` while the loop has it, in `_turns` while the thread has it or may take it.
        self._due: list[None] = []
        self._turns: SimpleQueue[None] = SimpleQueue()
        self._thread = DaemonThread(self._wait, "doorman-aio")
        self._listeners = AsyncListeners(self._server, self._fail)
        self._managers = _chain(manager)
        for each in self._managers:
            if (other := each._loop_driver) is not None:
                if not other._loop.is_closed():
                    raise RuntimeError(
                        "this manager is driven by an event loop already: enter only the outermost manager"
                    )
                other.detach()  # That loop was closed within the block.
        for each in self._managers:
            each._loop_driver = self  # From now on `detach` may be called: an interrupt leaves the block.
        self._listeners.attach()
        self._thread.start()
        self._begin_turn()

    def schedule_tick(self) -> None:
        """Request a tick soon, since tasks or rules have changed."""
        if not self.tick_scheduled:
            self.tick_scheduled = True
            self._server.wake()

    async def run(self, timeout: float | None) -> None:
        """Wait until no task waits or runs, or for ``timeout`` seconds. Raises what a tick raised."""
        idle = self._new_wait()
        self._idle.add(idle)
        self.schedule_tick()
        try:
            async with asyncio.timeout(timeout) as bound:
                await idle
        except TimeoutError:
            if not bound.expired():
                raise
        finally:
            self._idle.discard(idle)

    async def wait_ended(self, task: Task) -> None:
        """Wait until a task has finished. Raises what a tick raised."""
        ended = self._new_wait()
        if task not in self._awaited:  # One callback for each task: a program may wait a million times, with timeouts.
            task._on_done(self._on_task_done)
            self._awaited[task] = set()  # Only now: after an interrupt above, the next wait adds another callback.
        waits = self._awaited[task]
        waits.add(ended)
        try:
            if not task.done():  # Another thread, which closes the manager, may have finished it just before.
                await ended
        finally:
            waits.discard(ended)

    async def leave(self, error: BaseException | None) -> None:
        """Close the manager at the end of its block, which raises ``error``. Raises what a tick raised.

        A cancellation takes effect when the manager is closed.
        """
        raises = self._owner.leave(error)
        await finish_uncancelled(self._loop.create_task(self._leave()))
        if self._error is not None and raises:
            raise self._error from None

    def detach(self) -> None:
        """Stop ticking; from now on the manager is ticked as without a loop."""
        if self._manager._loop_driver is not self:
            return
        self._detached = True
        self._turns.put(None)
        self._server.wake()
        self._thread.join(JOIN_TIMEOUT_S)
        self._listeners.detach()
        if not self._loop.is_closed():
            for idle in self._idle:
                _end_wait(idle)
        for each in reversed(self._managers):  # Last: a call that was interrupted is completed by the next one.
            each._loop_driver = None

    async def _leave(self) -> None:
        if self._error is None and not self._detached:
            for each in reversed(self._managers):  # The innermost first: it knows the tasks that outlive it.
                each._begin_shutdown()
            try:
                await self.run(self._manager._root._shutdown_timeout)
            except BaseException:  # The error of a tick is returned by `leave`; running tasks are stopped all the same.
                if self._error is None:
                    raise
        self.detach()
        await call_in_thread(self._manager.close)

    # -- on the loop -------------------------------------------------------------------------------------------

    def _begin_turn(self) -> None:
        self._due.append(None)
        for _ in range(2):  # An exception of a signal handler may end the first call.
            self._loop.call_soon_threadsafe(self._turn)

    def _turn(self) -> None:
        """Tick, then let the thread wait."""
        if not self._due or self._detached or self._error is not None:
            return
        self.tick_scheduled, self.ticking = False, True
        try:
            busy = self._manager.tick()
        except BaseException as error:
            self._fail(error)
            if not isinstance(error, Exception):
                raise
            return  # Raised by each await of the manager, or at the end of its block.
        finally:
            self.ticking = False
        if not busy:
            for idle in self._idle:
                _end_wait(idle)
        any(map(self._turns.put, starmap(self._due.pop, ((),))))  # One call: an interrupt in between would lose it.

    def _fail(self, error: BaseException) -> None:
        self._error = error
        waits = [future for future in chain(self._idle, *self._awaited.values()) if not future.done()]
        for future in waits:
            future.set_exception(error)
        if not waits:  # The block awaits something else: without its end, no code would learn of the error.
            logger.error("%r has stopped, which ends its block", self._manager, exc_info=error)
            self._owner.cancel()

    def _new_wait(self) -> asyncio.Future[None]:
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("a manager and its tasks must be awaited on the loop on which the manager was entered")
        if self._error is not None:
            raise self._error
        return self._loop.create_future()

    def _on_task_done(self, task: Task) -> None:
        """End the waits for a task. Runs in another thread while the manager closes, else on the loop."""
        if threading.get_ident() == self._loop_thread:
            self._end_waits(task)
        else:
            self._loop.call_soon_threadsafe(self._end_waits, task)

    def _end_waits(self, task: Task) -> None:
        for ended in self._awaited.get(task, ()):
            _end_wait(ended)
        self._awaited.pop(task, None)  # Last: after an interrupt above, `_fail` ends the waits.

    # -- in the thread -----------------------------------------------------------------------------------------

    def _wait(self) -> None:
        """Wait for work and schedule a tick, in turns with the loop."""
        try:
            while not self._detached:
                try:
                    next_item(self._turns, IDLE_WAIT_S)
                except Empty:
                    continue  # The loop is busy with other work.
                try:
                    self._manager.wait(IDLE_WAIT_S)
                except Exception as error:  # noqa: BLE001 - raised on the loop, as if a tick had
                    self._loop.call_soon_threadsafe(self._fail, error)
                    return
                self._begin_turn()
        except RuntimeError:
            return  # The loop was closed before the manager.


def _end_wait(wait: asyncio.Future[None]) -> None:
    if not wait.done():  # It may be cancelled.
        wait.set_result(None)


def _chain(manager: BaseManager) -> list[BaseManager]:
    """Return a manager and those inside it, from the outermost to the innermost."""
    managers = [manager]
    while (inner := managers[-1]._inner) is not None:
        managers.append(inner)
    return managers
