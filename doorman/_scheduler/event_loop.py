"""Asyncio: what ticks a manager on an event loop: a thread waits for its descriptors, and the loop does all the rest.

Waiting and ticking take turns, so nothing of the manager's is ever touched by two threads. No wait of the loop's holds
anything: to cancel one loses nothing.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable
from itertools import chain
from typing import Any, Final, Protocol

from doorman.futures import IDLE_WAIT_S
from doorman.task import Life
from remit import Event, Server

__all__ = ["LoopDriver"]


JOIN_TIMEOUT_S: Final = 5.0
"""Seconds that the end of a driver waits for its thread, which was woken."""


class Ticked(Protocol):
    """The part of a manager that its event loop uses."""

    server: Server
    _loop_driver: LoopDriver | None
    _shutdown_timeout: float

    @property
    def _inner(self) -> Ticked | None:
        """The manager that it leads."""

    def tick(self) -> bool:
        """Do what can be done now; True while anything waits or runs."""

    def wait(self, timeout: float) -> None:
        """Return after ``timeout`` seconds, or earlier if `tick` has something to do."""

    def _begin_shutdown(self) -> None:
        """Begin to leave."""

    def close(self) -> None:
        """Stop what runs, drop what waits, and end."""


class LoopDriver:
    """Ticks one manager, and those that it leads, on the running loop whenever there is something to do."""

    def __init__(self, owner: Ticked) -> None:
        self._owner = owner
        self._server = owner.server
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._idle: set[asyncio.Future[None]] = set()
        self._awaited: dict[Life, set[asyncio.Future[None]]] = {}
        """Those who wait for each task that was ever waited for and has not ended."""
        self._later: set[asyncio.Task[None]] = set()
        self._error: BaseException | None = None
        self._kicked = self._over = False
        self.ticking = False
        """Whether it is this driver that ticks now."""
        self._turns = threading.Semaphore(0)
        """Held by the thread while it waits, by the loop while it ticks: who has done releases it to the other."""
        self._thread = threading.Thread(target=self._wait, name="doorman-aio", daemon=True)
        self._owners = _chain(owner)
        for each in self._owners:
            if each._loop_driver is not None:
                raise RuntimeError("this manager is driven by an event loop already: enter only the one that leads it")
        for each in self._owners:
            each._loop_driver = self
        self._server.later = []
        self._thread.start()
        self._loop.call_soon(self._turn)

    # -- for the manager ---------------------------------------------------------------------------------------

    def schedule_tick(self) -> None:
        """Have the manager ticked soon: something about it has changed."""
        if not self._kicked:
            self._kicked = True
            self._server.wake()

    async def run(self, timeout: float | None) -> None:
        """Return when nothing waits or runs any more, or after ``timeout`` seconds. Raises what a tick raised."""
        idle = self._promise()
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

    async def wait_ended(self, task: Life) -> None:
        """Return when a task has ended. Raises what a tick raised."""
        ended = self._promise()
        known = task in self._awaited
        waits = self._awaited.setdefault(task, set())
        waits.add(ended)
        if not known:  # Once for each task: a wait that times out may be one of a million.
            task._on_done(self._tell_end)
        try:
            await ended
        finally:
            waits.discard(ended)

    async def leave(self) -> BaseException | None:
        """Stop what runs, drop what waits, and end; return what a tick raised. Obeys a cancellation afterwards."""
        leaving = self._loop.create_task(self._leave())
        cancelled: asyncio.CancelledError | None = None
        while not leaving.done():
            try:
                await asyncio.wait([leaving])  # Unlike leaving itself, it may be cancelled.
            except asyncio.CancelledError as error:
                cancelled = error
        leaving.result()
        if cancelled is not None:
            raise cancelled
        return self._error

    def detach(self) -> None:
        """Tick no more, and let the manager be ticked as without a loop."""
        if self._over:
            return
        self._over = True
        self._turns.release()
        self._server.wake()
        self._thread.join(JOIN_TIMEOUT_S)
        for each in self._owners:
            each._loop_driver = None
        self._server.later = None
        for idle in self._idle:
            _keep(idle)

    async def _leave(self) -> None:
        if self._error is None and not self._over:
            for each in reversed(self._owners):  # Who is led first: it knows what outlives it.
                each._begin_shutdown()
            try:
                await self.run(self._owner._shutdown_timeout)
            except BaseException:  # What a tick raised is told by `leave`; what runs is stopped all the same.
                if self._error is None:
                    raise
        for task in self._later:
            task.cancel()
        self.detach()
        await self._loop.run_in_executor(None, self._owner.close)

    # -- the loop ----------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Tick, and let the thread wait for what comes next."""
        if self._over or self._error is not None:
            return
        self._kicked, self.ticking = False, True
        try:
            busy = self._owner.tick()
        except BaseException as error:
            self._fail(error)
            if not isinstance(error, Exception):
                raise
            return  # It is raised by whatever awaits the manager, or by leaving it.
        finally:
            self.ticking = False
        self._await_listeners()
        if not busy:
            for idle in self._idle:
                _keep(idle)
        self._turns.release()

    def _fail(self, error: BaseException) -> None:
        self._error = error
        for future in chain(self._idle, *self._awaited.values()):
            if not future.done():
                future.set_exception(error)

    def _promise(self) -> asyncio.Future[None]:
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("a manager and its tasks are awaited on the loop on which the manager was entered")
        if self._error is not None:
            raise self._error
        return self._loop.create_future()

    def _tell_end(self, task: Life) -> None:
        """Callback: a task has ended; in another thread where its manager closes."""
        if threading.get_ident() == self._loop_thread:
            self._keep_all(task)
        else:
            self._loop.call_soon_threadsafe(self._keep_all, task)

    def _keep_all(self, task: Life) -> None:
        for ended in self._awaited.pop(task, ()):
            _keep(ended)

    def _await_listeners(self) -> None:
        """Begin what async listeners of the manager's server returned."""
        later = self._server.later
        while later:
            task = self._loop.create_task(self._await(*later.pop(0)))
            self._later.add(task)
            task.add_done_callback(self._later.discard)

    async def _await(self, event: Event, awaitable: Awaitable[Any]) -> None:
        try:
            await awaitable
        except Exception as error:  # noqa: BLE001 - one listener must not stop the others
            self._server._failed(event, error)

    # -- the thread --------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        """Wait until there is something to do, have the loop do it, and so on."""
        try:
            while not self._over:
                if not self._turns.acquire(timeout=IDLE_WAIT_S):
                    continue  # The loop is busy with something else.
                try:
                    self._owner.wait(IDLE_WAIT_S)
                except Exception as error:  # noqa: BLE001 - it is the loop's to raise, as a tick's
                    self._loop.call_soon_threadsafe(self._fail, error)
                    return
                self._loop.call_soon_threadsafe(self._turn)
        except RuntimeError:
            return  # The loop is closed, and nobody has left the manager.


def _keep(promise: asyncio.Future[None]) -> None:
    if not promise.done():
        promise.set_result(None)


def _chain(owner: Ticked) -> list[Ticked]:
    """Return a manager and those that it leads, directly or not."""
    owners = [owner]
    while (led := owners[-1]._inner) is not None:
        owners.append(led)
    return owners
