"""Load of the running tasks: processor time and memory of their processes, sampled once for all rules."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from doorman.cores import processor_share
from doorman.process import STAT_CPU, STAT_RSS_PAGES, STAT_START, STAT_THREADS, child_pids, stat_fields

__all__ = ["Cost", "Load", "Meter", "Reading", "read_process"]

SAMPLE_INTERVAL_S: Final = 0.1  # of one process: the kernel counts processor time in ticks of 10 ms
STALE_AFTER_S: Final = 2.0


class Reading(NamedTuple):
    """Resources that a process and its living descendants have used so far."""

    cpu: float
    """Seconds of processor time."""
    memory: int
    """Resident bytes. A page that several processes share counts for each of them."""
    born: int = 0
    """Start time of the process, which distinguishes it from a later one with the same pid."""


@dataclass(slots=True)
class Cost:
    """Load of several processes, in per cent of the machine's cores and of its memory."""

    processes: int = 0
    processor: float = 0.0
    memory: float = 0.0
    unmeasured: int = 0
    """Number of processes that count as one busy core each, because they have not been measured."""


@dataclass(slots=True)
class Load:
    """Load of all running tasks together, and of the tasks of each handler."""

    everyone: Cost = field(default_factory=Cost)
    handlers: dict[str, Cost] = field(default_factory=dict)

    def siblings(self, handler: str) -> Cost:
        """Return the load of the tasks of one handler."""
        return self.handlers.get(handler) or Cost()

    def add(self, handler: str, processor: float, memory: float, *, measured: bool = True) -> None:
        """Add one process."""
        for cost in (self.everyone, self.handlers.setdefault(handler, Cost())):
            cost.processes += 1
            cost.processor += processor
            cost.memory += memory
            cost.unmeasured += not measured


@dataclass(slots=True)
class _Known:
    reading: Reading
    at: float
    processor: float | None = None


class Meter:
    """Measures load as the change of processor time between two samples.

    A process that has not been sampled twice counts as one busy core. Otherwise a rule would admit a whole burst of
    tasks before the load of the first one is visible.
    """

    def __init__(
        self,
        read: Callable[[int], Reading | None] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        cores: float | None = None,
        memory: int | None = None,
    ) -> None:
        self._read = read or read_process
        self._clock = clock
        self._share = 100.0 / (cores or processor_share())
        self._memory = memory or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self._known: dict[str, _Known] = {}

    def measure(self, running: Iterable[tuple[str, str, int | None]]) -> Load:
        """Return the load of each ``(attempt, handler, pid)``; pid is None until the code of the attempt runs."""
        # Rebuilt with each measurement, so that ended attempts disappear without a call.
        load, now, before = Load(), self._clock(), self._known
        self._known = {}
        for attempt, handler, pid in running:
            if (known := self._look(before.get(attempt), pid, now)) is not None:
                self._known[attempt] = known
            processor, memory, measured = self.last_measured(attempt)
            load.add(handler, processor, memory, measured=measured)
        return load

    def add_unmeasured(self, load: Load, handler: str) -> None:
        """Add a process that has not been measured, as one busy core."""
        load.add(handler, self._share, 0.0, measured=False)

    def drop_stale(self) -> None:
        """Drop samples older than STALE_AFTER_S; called when measuring begins again after a pause."""
        oldest = self._clock() - STALE_AFTER_S
        self._known = {attempt: known for attempt, known in self._known.items() if known.at >= oldest}

    def last_measured(self, attempt: str) -> tuple[float, float, bool]:
        """Return the processor and memory load of an attempt as last added, and whether it was measured."""
        known = self._known.get(attempt)
        if known is None:
            return self._share, 0.0, False
        memory = 100.0 * known.reading.memory / self._memory
        # The first sample gives the memory, but no change of processor time yet.
        return self._share if known.processor is None else known.processor, memory, known.processor is not None

    def _look(self, known: _Known | None, pid: int | None, now: float) -> _Known | None:
        if known is not None and now - known.at < SAMPLE_INTERVAL_S:
            return known
        reading = None if pid is None else self._read(pid)
        if reading is None or (known is not None and reading.born != known.reading.born):
            return known  # The process has ended; another process may have its pid.
        if known is None:
            return _Known(reading, now)
        used = max(0.0, reading.cpu - known.reading.cpu)
        return _Known(reading, now, self._share * used / (now - known.at))


_TICK_HZ: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_MAX_DESCENDANTS: Final = 1000  # of one task: bounds the time of a measurement


def read_process(pid: int) -> Reading | None:
    """Return the resources of a process and its descendants from /proc; None if it has ended."""
    root = stat_fields(pid)
    if not root:
        return None
    ticks, pages = _ticks(root), int(root[STAT_RSS_PAGES])
    descendants = child_pids(pid, threaded=root[STAT_THREADS] != b"1")
    count = 0
    while descendants and count < _MAX_DESCENDANTS:
        count += 1
        child = descendants.pop()
        if fields := stat_fields(child):
            ticks, pages = ticks + _ticks(fields), pages + int(fields[STAT_RSS_PAGES])
            descendants += child_pids(child, threaded=fields[STAT_THREADS] != b"1")
    return Reading(ticks / _TICK_HZ, pages * _PAGE_BYTES, int(root[STAT_START]))


def _ticks(fields: list[bytes]) -> int:
    return sum(map(int, fields[STAT_CPU]))
