"""Load of the running tasks as rules count it, updated at each start and end and measured at intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from doorman._scheduler.attempt import Attempt
from doorman.load import SAMPLE_INTERVAL_S, Load, Meter

SHARE: Final = 0.1
"""Largest share of the manager's time for measuring: thousands of processes are measured less often."""


class Occupancy:
    """The load of one manager's processes. A start or an end costs O(1)."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self.load = Load()
        self._meter = Meter()
        self._clock = clock
        self._counted: dict[str, tuple[str, float, float, bool]] = {}
        self._next = 0.0

    def started(self, attempt: Attempt) -> None:
        """Count a process that was just launched as one busy core: its load cannot be measured yet."""
        if attempt.id in self._counted:
            return  # The caller was interrupted after it had called this.
        self._counted[attempt.id] = attempt.handler, *self._meter.last_measured(attempt.id)
        self._meter.add_unmeasured(self.load, attempt.handler)

    def ended(self, attempt: Attempt) -> None:
        """Subtract the last counted load of a process."""
        if attempt.id not in self._counted:
            return
        handler, processor, memory, measured = self._counted.pop(attempt.id)
        siblings = self.load.handlers[handler]
        for cost in (self.load.everyone, siblings):
            cost.processes -= 1
            cost.unmeasured -= not measured
            # Rounding errors of the sums may make them slightly negative.
            cost.processor = max(0.0, cost.processor - processor)
            cost.memory = max(0.0, cost.memory - memory)
        if not siblings.processes:
            del self.load.handlers[handler]
        if not self._counted:
            self.load = Load()

    def rebuild(self, running: Iterable[Attempt]) -> None:
        """Count the running processes again, each as just launched, until the next measurement."""
        self.load, self._counted, self._next = Load(), {}, 0.0
        for attempt in running:
            self.started(attempt)

    def resume(self) -> None:
        """Drop old readings, after a pause in which nothing waited."""
        self._meter.drop_stale()
        self._next = 0.0

    def measure(self, running: Iterable[Attempt]) -> bool:
        """Measure the processes if the last readings are old enough; return whether it measured."""
        began = self._clock()
        if began < self._next:
            return False
        attempts = list(running)
        self.load = self._meter.measure(map(_place, attempts))
        self._counted = {attempt.id: (attempt.handler, *self._meter.last_measured(attempt.id)) for attempt in attempts}
        ended = self._clock()
        self._next = ended + max(SAMPLE_INTERVAL_S, (ended - began) / SHARE)
        return True


def _place(attempt: Attempt) -> tuple[str, str, int | None]:
    """Return id, handler and pid of an attempt; no pid before its user code runs, or on another host."""
    known = attempt.task.identity
    return attempt.id, attempt.handler, known.pid if known is not None and known.here else None
