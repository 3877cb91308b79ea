"""A broker that distributes the requests of clients to workers, and requeues the jobs of workers that die."""

from __future__ import annotations

import time
from typing import Any, Final

from remit._io.server_io import ServerIO
from remit._patterns.jobs import SWEEP_INTERVAL_S, BrokerCore
from remit._protocol.job_queue import JOB_BYTES
from remit.listeners import OnError
from remit.location import Location
from remit.options import check_count, check_seconds
from remit.server import Server

__all__ = ["Broker"]

LEASE_S: Final = 10.0
"""Seconds of silence after which a worker is considered dead."""


class Broker:
    """Queues the requests of clients as jobs and assigns each to one worker. The location is opened immediately.

    A worker that was silent for ``lease`` seconds, or was disconnected and has not reconnected within 2 seconds, is
    considered dead, and its jobs are requeued. On the host of the broker it may be silent for as long as its process
    runs. A job that ``max_attempts`` workers have died of is a dead letter.
    ``queue`` bounds the number of jobs and ``job_bytes`` their bytes; further requests are refused. The other
    ``options`` are those of `Server`. Raises what `Server` raises.
    """

    def __init__(
        self,
        location: str | Location | None = None,
        *,
        lease: float = LEASE_S,
        max_attempts: int = 3,
        queue: int = 65_536,
        job_bytes: int = JOB_BYTES,
        on_error: OnError | None = None,
        **options: Any,
    ) -> None:
        check_seconds("lease", lease, above_zero=True)
        check_count("max_attempts", max_attempts)
        check_count("queue", queue)
        check_count("job_bytes", job_bytes)
        server = None
        try:
            self.server = server = _BrokerServer(location, on_error=on_error, **options)
            self._core = BrokerCore(
                server._router,
                server._requests,
                server._post,
                lease=lease,
                max_attempts=max_attempts,
                queue=queue,
                job_bytes=job_bytes,
            )
            server.core = self._core
            server._unheard_hint = "a broker handles requests only: use client.request() or client.submit()"
        except BaseException:
            if server is not None:
                server.close(0.0)
            raise

    def tick(self) -> int:
        """Handle what has arrived and assign jobs, without waiting; return the number of events handled."""
        return self.server.tick()

    def wait(self, timeout: float) -> None:
        """Return after ``timeout`` seconds, or earlier if `tick` may have something to do."""
        self.server.wait(self._bound_wait(timeout))

    def _bound_wait(self, timeout: float) -> float:
        """Return the longest wait before the next `tick`, at most ``timeout`` seconds."""
        # Leases and deadlines expire without an event, so the broker must be ticked once in each interval.
        return min(timeout, SWEEP_INTERVAL_S) if self.busy or len(self._core.workers) else timeout

    def run(self, timeout: float | None = None) -> None:
        """Tick until `stop` or `close` is called, or ``timeout`` seconds have passed."""
        self.server._run(self.tick, self.wait, timeout)

    def stop(self) -> None:
        """Make `run` return; if it has not been called yet, the next call returns. Safe from any thread."""
        self.server.stop()

    def drain(self, timeout: float) -> bool:
        """Refuse new requests, and tick until all jobs are done; return False after ``timeout`` seconds."""
        self._refuse_requests()
        deadline = time.monotonic() + timeout
        while self.busy and (left := deadline - time.monotonic()) > 0:
            if not self.tick():
                self.wait(left)
        return not self.busy

    def _refuse_requests(self) -> None:
        self._core.draining = True

    @property
    def busy(self) -> bool:
        """Whether a job waits or is assigned."""
        return len(self._core.jobs) > 0

    def close(self) -> None:
        """Close the server. May be called twice."""
        self.server.close()

    def __enter__(self) -> Broker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def location(self) -> Location:
        """Location to which clients and workers connect."""
        return self.server.location

    @property
    def dead_letters(self) -> tuple[tuple[str, tuple[Any, ...], dict[str, Any], int], ...]:
        """The last dead letters: name, arguments, keyword arguments, attempts."""
        return self._core.dead_letters

    def stats(self) -> dict[str, int]:
        """Return counters of jobs (submitted, done, requeued, ...), and the present numbers of jobs and workers."""
        return self._core.stats()


class _BrokerServer(Server):
    """The server of a broker. The thread that ticks it changes the state of the broker, and no other thread does."""

    core: BrokerCore

    def _tick(self, io: ServerIO, limit: int | None) -> int:
        try:
            handled = super()._tick(io, limit)
            self.core.advance(io.link_pump.drained_at)
            self._flush(io)
            return handled
        except BaseException:
            self.core.repair()
            raise
