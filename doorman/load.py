"""Load: what the running tasks cost now, measured once for all rules."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

__all__ = ["Cost", "Load", "Meter", "Reading", "process_reader"]

SAMPLE_INTERVAL_S: Final = 0.1
"""Seconds between two readings of one process: within less, a clock of 10 ms ticks tells nothing."""
STALE_AFTER_S: Final = 2.0
"""Seconds after which a reading that nobody needed meanwhile says nothing about now."""


class Reading(NamedTuple):
    """What one process has used so far, with all that it has started and that is there still."""

    cpu: float
    """Seconds of processor time."""
    memory: int
    """Bytes resident now; what several of them share is counted for each."""
    born: int = 0
    """When it started, by which a process that got its number later is told from it."""


@dataclass(slots=True)
class Cost:
    """What some processes cost: per cent of the machine's cores and of its memory."""

    processes: int = 0
    processor: float = 0.0
    memory: float = 0.0
    unmeasured: int = 0
    """How many of the processes count as one busy core each, since their load cannot show yet."""

    def add(self, processor: float, memory: float, *, measured: bool) -> None:
        """Count one more process."""
        self.processes += 1
        self.processor += processor
        self.memory += memory
        self.unmeasured += not measured


@dataclass(slots=True)
class Load:
    """What all running tasks cost, and those of each handler."""

    everyone: Cost = field(default_factory=Cost)
    handlers: dict[str, Cost] = field(default_factory=dict)

    def siblings(self, handler: str) -> Cost:
        """Return what the tasks of one handler cost."""
        return self.handlers.get(handler) or Cost()

    def add(self, handler: str, processor: float, memory: float, *, measured: bool = True) -> None:
        """Count one more process."""
        for cost in (self.everyone, self.handlers.setdefault(handler, Cost())):
            cost.add(processor, memory, measured=measured)


@dataclass(slots=True)
class _Known:
    reading: Reading
    at: float
    processor: float | None = None


class Meter:
    """Knows what each process used when it was last read.

    Load is the change since then, over all cores. A process that has not been read twice counts as one busy core: a
    burst of starts must not be admitted before its load can show.
    """

    def __init__(
        self,
        read: Callable[[int], Reading | None] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        cores: int | None = None,
        memory: int | None = None,
    ) -> None:
        self._read = read or process_reader()
        self._clock = clock
        self._share = 100.0 / (cores or _cores())
        self._memory = memory or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self._known: dict[str, _Known] = {}

    def measure(self, running: Iterable[tuple[str, str, int | None]], *, read: bool = True) -> Load:
        """Return the load of ``(attempt, handler, pid)``; the pid is None while the task's code does not run yet.

        With ``read=False`` the processes are only counted.
        """
        load, now, before = Load(), self._clock(), self._known
        self._known = {}
        for attempt, handler, pid in running:
            known = self._look(before.get(attempt), pid, now) if read else None
            if known is not None:
                self._known[attempt] = known
            if not read:
                load.add(handler, 0.0, 0.0)
            elif known is None or known.processor is None:
                self.add_unmeasured(load, handler, 0 if known is None else known.reading.memory)
            else:
                load.add(handler, known.processor, 100.0 * known.reading.memory / self._memory)
        return load

    def add_unmeasured(self, load: Load, handler: str, memory: int = 0) -> None:
        """Count a process whose load cannot show yet: as one busy core, and with the bytes that are known."""
        load.add(handler, self._share, 100.0 * memory / self._memory, measured=False)

    def drop_stale(self) -> None:
        """Drop what is too old to say anything about now; to be called when measuring begins after a pause."""
        oldest = self._clock() - STALE_AFTER_S
        self._known = {attempt: known for attempt, known in self._known.items() if known.at >= oldest}

    def last_measured(self, attempt: str) -> tuple[float, float, bool]:
        """Return what an attempt was last counted with: processor and memory load, and whether it was measured."""
        known = self._known.get(attempt)
        memory = 0.0 if known is None else 100.0 * known.reading.memory / self._memory
        if known is None or known.processor is None:
            return self._share, memory, False
        return known.processor, memory, True

    def _look(self, known: _Known | None, pid: int | None, now: float) -> _Known | None:
        if known is not None and now - known.at < SAMPLE_INTERVAL_S:
            return known
        reading = None if pid is None else self._read(pid)
        if reading is None or (known is not None and reading.born != known.reading.born):
            return known  # It has ended, whoever may have its number now.
        if known is None:
            return _Known(reading, now)
        used = max(0.0, reading.cpu - known.reading.cpu)
        return _Known(reading, now, self._share * used / (now - known.at))


_TICK: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_MOST: Final = 1000
"""Processes below one task that are looked at: more would cost more than they tell."""


def _read_proc(pid: int) -> Reading | None:
    """Return what /proc says of a process and of all below it; None if it has ended."""
    root = _stat(pid)
    if root is None:
        return None
    ticks, pages, below = _ticks(root), int(root[21]), _children(pid, root)
    seen = 0
    while below and seen < _MOST:
        seen += 1
        child = below.pop()
        values = _stat(child)
        if values is not None:
            ticks, pages = ticks + _ticks(values), pages + int(values[21])
            below += _children(child, values)
    return Reading(ticks / _TICK, pages * _PAGE, int(root[19]))


def _stat(pid: int) -> list[bytes] | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - a Path costs more than the read
            return file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _ticks(values: list[bytes]) -> int:
    """Return what a process has used, with what the children used that it has waited for."""
    return sum(map(int, values[11:15]))


def _children(pid: int, values: list[bytes]) -> list[int]:
    """Return the processes that a process started; a kernel may keep them to itself."""
    try:
        threads = [str(pid)] if values[17] == b"1" else os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 - as above
        found: list[int] = []
        for thread in threads:
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:  # noqa: PTH123 - as above
                found += map(int, file.read().split())
        return found
    except (FileNotFoundError, ProcessLookupError):
        return []


def _cores() -> int:
    """Return how many cores this process and its tasks may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def process_reader() -> Callable[[int], Reading | None]:
    """Return what reads a process by its number; what it returns is None if that has ended."""
    if os.path.exists("/proc/self/stat"):  # noqa: PTH110 - once
        return _read_proc
    import psutil  # only where there is no /proc

    def read(pid: int) -> Reading | None:
        try:
            process = psutil.Process(pid)
            times = process.cpu_times()
            return Reading(times.user + times.system, process.memory_info().rss)
        except psutil.Error:
            return None

    return read
