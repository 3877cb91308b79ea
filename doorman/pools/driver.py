"""Driver: the thread behind an executor: it makes a manager, ticks it while there is work, and ends it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from doorman.errors import PoolFailed
from doorman.manager import BURIAL, ProcessManager
from doorman.pools.crew import Crew
from doorman.pools.fresh import Fresh

if TYPE_CHECKING:
    from doorman.identity import Identity
    from doorman.pools.call import Call
    from remit import Location

__all__ = ["Driver"]

LONG: Final = 60.0
"""Seconds that the thread sleeps at a time at the most; whatever happens wakes it."""


class Driver:
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
        self._pool: Crew | Fresh | None = None
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
    def drives_here(self) -> bool:
        """Whether the calling thread is the driver's own."""
        return threading.current_thread() is self._thread

    @property
    def pool(self) -> Crew | Fresh:
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
        return self.pool.unfinished

    def finish(self, *, cancel: bool = False) -> None:
        """End the thread when all that was submitted has ended; with ``cancel``, all that runs. From any thread."""
        if self.alive:
            self._finishing = True
            # In the thread, and so in turn: what was submitted before is given to whoever is idle before that.
            self.pool.manager.call_soon(self.pool.cancel_rest if cancel else _nothing)

    def stop_workers(self, *, kill: bool) -> None:
        """Have the processes stopped. From any thread."""
        self.pool.manager.call_soon(lambda: self.pool.stop_workers(kill=kill))

    def join(self, timeout: float | None) -> bool:
        """Wait for the thread's end; False after ``timeout`` seconds."""
        self._thread.join(None if timeout is None else max(0.0, timeout))
        return not self._thread.is_alive()

    def abandon(self) -> None:
        """End the thread and everything that runs, now."""
        self._abandoned = True
        self.pool.manager.call_soon(_nothing)
        self.join(BURIAL)

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
                make = Crew if self._reuse else Fresh
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
                self._pool.give_up(PoolFailed(f"what drives the processes failed: {error}"), error)

    def _drive(self, manager: ProcessManager, pool: Crew | Fresh) -> None:
        while not self._abandoned and not (self._finishing and not pool.busy):
            manager.tick()
            manager.wait(LONG)
        if self._abandoned:
            pool.cancel_waiting()
            pool.stop_workers(kill=True)
        pool.close()


def _nothing() -> None:
    """Wake the thread; it sees itself what has changed."""
