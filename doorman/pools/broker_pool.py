"""A broker with worker processes that are restarted when they die."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Self

from doorman.errors import PoolFailed
from doorman.futures import IDLE_WAIT_S
from doorman.manager import ProcessManager
from doorman.retry import Intensity
from doorman.states import State
from doorman.task import Task
from remit import Broker, Location, Worker

INTENSITY: Final = Intensity(restarts=10, seconds=10.0)
"""How often each worker may be restarted before the pool fails."""


class WorkerPool:
    """Answers requests with ``processes`` worker processes: a broker and a process manager on one location.

    ``handler`` answers requests of ``name``; a mapping of names to handlers answers several. Clients send them by
    ``Client(pool.location).request(name, ...)``. A request whose worker dies goes to another one. ``capacity`` is the
    number of requests that a worker holds at a time: more than one for short requests. Further options are those of
    `ProcessManager`. Raises what `Broker` and `ProcessManager` raise.
    """

    def __init__(
        self,
        handler: Callable[..., Any] | Mapping[str, Callable[..., Any]],
        *,
        processes: int = 5,
        location: str | Location | None = None,
        name: str = "job",
        capacity: int = 1,
        max_attempts: int = 3,
        **options: Any,
    ) -> None:
        if processes < 1:
            raise ValueError(f"a pool has at least one process, not {processes!r}")
        self._handlers = dict(handler) if isinstance(handler, Mapping) else {name: handler}
        self._capacity = capacity
        self._stopping = self._closed = False
        self.broker = Broker(location, max_attempts=max_attempts)
        try:
            self.manager = ProcessManager(self.broker.server, **options)
        except BaseException:
            self.broker.close()
            raise
        try:
            self._workers = [self._add_worker() for _ in range(processes)]
        except BaseException:
            self.close()
            raise

    @property
    def location(self) -> Location:
        """Where clients connect."""
        return self.broker.location

    @property
    def workers(self) -> tuple[Task, ...]:
        """The tasks that are its workers. A restarted worker is the same task."""
        return tuple(self._workers)

    def tick(self) -> int:
        """Process all pending events without waiting; return their number. Raises PoolFailed."""
        handled = self.broker.tick()
        self.manager.tick()
        for place, worker in enumerate(self._workers):
            # A permanent task ends only by too many restarts or by a cancel. After a cancel it is replaced.
            if worker.done() and not self._closed:
                error = worker.exception(0)
                if worker.state is not State.CANCELLED:
                    raise PoolFailed(f"a worker died too often: {error}") from error
                self._workers[place] = self._add_worker()
        return handled

    def wait(self, timeout: float) -> None:
        """Return after ``timeout`` seconds, or earlier if `tick` may have work."""
        self.manager.wait(timeout)

    def run(self, timeout: float | None = None) -> None:
        """Tick until `stop` is called, or for ``timeout`` seconds. Raises PoolFailed."""
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        try:
            while not self._stopping and (left := deadline - time.monotonic()) > 0:
                if not self.tick():
                    self.manager.wait(self.broker._bound_wait(min(left, IDLE_WAIT_S)))
        finally:
            self._stopping = False

    def stop(self) -> None:
        """Make `run` return, or the next call of `run` if none is in progress. Safe from any thread."""
        self._stopping = True
        self.broker.server.wake()

    def drain(self, timeout: float) -> bool:
        """Refuse further requests and tick until all are answered; return False after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        self.broker._refuse_requests()
        while self.broker.busy and (left := deadline - time.monotonic()) > 0:
            if not self.tick():
                self.manager.wait(self.broker._bound_wait(left))
        return not self.broker.busy

    def close(self) -> None:
        """Stop the workers (TERM, grace, KILL) and close the broker. May be called twice."""
        if not self._closed:
            self._closed = True
            try:
                self.manager.close()
            finally:
                self.broker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _add_worker(self) -> Task:
        arguments = self.location, self._handlers, self._capacity
        return self.manager.add_task(Task(_serve, *arguments, name="worker", restart="permanent", intensity=INTENSITY))


def _serve(location: Location, handlers: dict[str, Callable[..., Any]], capacity: int) -> None:
    """Run a worker in its process until the process is stopped."""
    with Worker(location, capacity=capacity) as worker:
        for name, handler in handlers.items():
            worker.add_handler(name, handler)
        worker.run()
