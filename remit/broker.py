"""Broker: one server in the middle: clients ask it, workers take the jobs, and no death of either loses one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from remit._patterns.jobs import SWEEP_INTERVAL_S, BrokerCore
from remit.errors import LinkClosed
from remit.listeners import OnError
from remit.location import Location
from remit.options import check_count, check_seconds
from remit.server import Server

if TYPE_CHECKING:
    pass

__all__ = ["Broker"]

LEASE: Final = 10.0
"""Seconds of silence after which a worker is taken for dead."""
FOREVER: Final = float("inf")


class Broker:
    """Takes requests from clients and gives them to workers, each to one that lives. Opens its location at once.

    A job is given to another worker when the one that has it dies: that happens ``lease`` seconds after it was last
    heard of, or earlier when its connection is lost and does not come back. After ``max_attempts`` workers have died of
    it, it is a dead letter. ``queue`` bounds the jobs in here; beyond it a request is refused. Other ``options``
    are those of `Server`. Raises as that does.
    """

    def __init__(
        self,
        location: str | Location | None = None,
        *,
        lease: float = LEASE,
        max_attempts: int = 3,
        queue: int = 65_536,
        on_error: OnError | None = None,
        **options: Any,
    ) -> None:
        check_seconds("lease", lease, above_zero=True)
        check_count("max_attempts", max_attempts)
        check_count("queue", queue)
        self.server = Server(location, on_error=on_error, **options)
        self._core = BrokerCore(
            self.server._router,
            self.server._requests,
            self.server._post,
            lease=lease,
            max_attempts=max_attempts,
            queue=queue,
        )
        self._stopping = False

    # -- making progress ---------------------------------------------------------------------------------------

    def tick(self) -> int:
        """Do what can be done now, without waiting; return how many events were handled."""
        handled = self.server.tick()
        self._core.advance(self.server._drained_at)
        return handled

    def wait(self, timeout: float) -> None:
        """Return after ``timeout`` seconds, or earlier if `tick` may have something to do."""
        self._bounded_wait(timeout, self.server.wait)

    def _bounded_wait(self, timeout: float, wait: Callable[[float], None]) -> None:
        """Wait by ``wait(seconds)``, for as long as no lease or deadline has to be looked at."""
        wait(min(timeout, SWEEP_INTERVAL_S) if self.busy or len(self._core.workers) else timeout)

    def run(self, timeout: float | None = None) -> None:
        """Tick until `stop` or `close` is called, or ``timeout`` seconds have passed."""
        deadline = FOREVER if timeout is None else time.monotonic() + timeout
        try:
            while not self._stopping and (left := deadline - time.monotonic()) > 0:
                if not self.tick():
                    self.wait(min(left, 1.0))
        except LinkClosed:
            if self.server._is_open:
                raise
        finally:
            self._stopping = False

    def stop(self) -> None:
        """Make `run` return, or the next one if none has begun yet. Safe from any thread."""
        self._stopping = True
        self.server.wake()

    def drain(self, timeout: float) -> bool:
        """Take no more requests, and tick until all jobs are done; False after ``timeout`` seconds."""
        self._refuse_requests()
        deadline = time.monotonic() + timeout
        while self.busy and (left := deadline - time.monotonic()) > 0:
            if not self.tick():
                self.wait(left)
        return not self.busy

    def _refuse_requests(self) -> None:
        """Take no more requests from now on."""
        self._core.draining = True

    @property
    def busy(self) -> bool:
        """Whether any job waits or is in hand."""
        return len(self._core.jobs) > 0

    def close(self) -> None:
        """End. May be called twice."""
        self.server.close()

    def __enter__(self) -> Broker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def location(self) -> Location:
        """Where clients and workers reach it."""
        return self.server.location

    @property
    def dead_letters(self) -> tuple[tuple[str, tuple[Any, ...], dict[str, Any], int], ...]:
        """The last jobs that were given up: name, arguments, keyword arguments, attempts."""
        return self._core.dead_letters

    def stats(self) -> dict[str, int]:
        """Return counters: jobs submitted, done, requeued, dead, late, cancelled, refused, stale; what is here now."""
        return self._core.stats()
