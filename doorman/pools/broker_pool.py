"""Pool: a broker here, and workers in processes of their own, each replaced when it dies."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from doorman.errors import PoolFailed
from doorman.manager import ProcessManager
from doorman.task import Task
from remit import Broker, Location, Worker

if TYPE_CHECKING:
    pass

__all__ = ["WorkerPool"]


INTENSITY: Final = 10
"""Workers that may die within `PERIOD`, for each process of the pool, before it is given up."""
PERIOD: Final = 10.0
"""Seconds that a worker's death is remembered."""
IDLE_WAIT_S: Final = 60.0
"""Seconds that `WorkerPool.run` waits at a time at the most."""


class WorkerPool:
    """Answers requests with ``processes`` workers that it keeps alive: a broker and a process manager on one location.

    ``handler`` answers requests of ``name``; a mapping of names to handlers answers several. Clients ask by
    ``Client(pool.location).request(name, ...)``. A request whose worker dies is given to another. ``capacity`` is how
    many requests a worker holds at once: more than one where they are short. Further options are those of
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
        self._processes, self._capacity = processes, capacity
        self._deaths: deque[float] = deque()
        self._workers: list[Task] = []
        self._stopping = self._closed = False
        self.broker = Broker(location, max_attempts=max_attempts)
        try:
            self.manager = ProcessManager(self.broker.server, **options)
        except BaseException:
            self.broker.close()
            raise

    @property
    def location(self) -> Location:
        """Where clients reach it."""
        return self.broker.location

    @property
    def workers(self) -> tuple[Task, ...]:
        """The tasks that are its workers now."""
        return tuple(self._workers)

    def tick(self) -> int:
        """Do what can be done now, without waiting; return how many events were handled. Raises PoolFailed."""
        handled = self.broker.tick()
        self.manager.tick()
        self._replace()
        return handled

    def wait(self, timeout: float) -> None:
        """Return after ``timeout`` seconds, or earlier if `tick` may have something to do."""
        self.manager.wait(timeout)

    def run(self, timeout: float | None = None) -> None:
        """Tick until `stop` is called or ``timeout`` seconds have passed. Raises PoolFailed."""
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        try:
            while not self._stopping and (left := deadline - time.monotonic()) > 0:
                if not self.tick():
                    self.broker._bounded_wait(min(left, IDLE_WAIT_S), self.manager.wait)
        finally:
            self._stopping = False

    def stop(self) -> None:
        """Make `run` return, or the next one if none has begun yet. Safe from any thread."""
        self._stopping = True
        self.broker.server.wake()

    def drain(self, timeout: float) -> bool:
        """Take no more requests, and tick until all are answered; False after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        self.broker._refuse_requests()
        while self.broker.busy and (left := deadline - time.monotonic()) > 0:
            if not self.tick():
                self.broker._bounded_wait(left, self.manager.wait)
        return not self.broker.busy

    def close(self) -> None:
        """Stop the workers (TERM, grace, KILL), and end. May be called twice."""
        if not self._closed:
            self._closed = True
            try:
                self.manager.close()
            finally:
                self.broker.close()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _replace(self) -> None:
        """Bury workers that have ended, and start as many as are missing."""
        for worker in [worker for worker in self._workers if worker.done()]:
            self._workers.remove(worker)
            self._mourn(worker)
        while len(self._workers) < self._processes and not self._closed:
            task = Task(_work, self.location, self._handlers, self._capacity, name="worker")
            self._workers.append(self.manager.add_task(task))

    def _mourn(self, worker: Task) -> None:
        now = time.monotonic()
        self._deaths.append(now)
        while self._deaths[0] < now - PERIOD:
            self._deaths.popleft()
        if len(self._deaths) > INTENSITY * self._processes:
            raise PoolFailed(
                f"{len(self._deaths)} workers died within {PERIOD} s; the last: {worker.exception(0)}"
            ) from worker.exception(0)


def _work(location: Location, handlers: dict[str, Callable[..., Any]], capacity: int) -> None:
    """Task: be a worker until stopped."""
    with Worker(location, capacity=capacity) as worker:
        for name, handler in handlers.items():
            worker.add_handler(name, handler)
        worker.run()
