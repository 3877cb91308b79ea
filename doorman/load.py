"""Load: what the running tasks cost now, measured once for all rules."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

__all__ = ["Cost", "Load", "Meter", "Reading", "reader"]

SAMPLE: Final = 0.1
"""Seconds between two readings of one process: within less, a clock of 10 ms ticks tells nothing."""


class Reading(NamedTuple):
    """What one process has used so far."""

    cpu: float
    """Seconds of processor time."""
    memory: int
    """Bytes resident now."""


@dataclass(slots=True)
class Cost:
    """What some processes cost: per cent of the machine's cores and of its memory."""

    processes: int = 0
    processor: float = 0.0
    memory: float = 0.0

    def add(self, processor: float, memory: float) -> None:
        """Count one more process."""
        self.processes += 1
        self.processor += processor
        self.memory += memory


@dataclass(slots=True)
class Load:
    """What all running tasks cost, and those of each handler."""

    everyone: Cost = field(default_factory=Cost)
    handlers: dict[str, Cost] = field(default_factory=dict)

    def siblings(self, handler: str) -> Cost:
        """Return what the tasks of one handler cost."""
        return self.handlers.get(handler) or Cost()

    def add(self, handler: str, processor: float, memory: float) -> None:
        """Count one more process."""
        self.everyone.add(processor, memory)
        self.handlers.setdefault(handler, Cost()).add(processor, memory)


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
        self._read = read or reader()
        self._clock = clock
        self._share = 100.0 / (cores or os.cpu_count() or 1)
        self._memory = memory or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self._known: dict[str, _Known] = {}

    @property
    def newcomer(self) -> float:
        """The processor load that a process is taken to be until it has been read twice."""
        return self._share

    def measure(self, running: Iterable[tuple[str, str, int | None]]) -> Load:
        """Return the load of ``(attempt, handler, pid)``; the pid is None while there is no process yet."""
        load, now, before = Load(), self._clock(), self._known
        self._known = {}
        for attempt, handler, pid in running:
            known = self._look(before.get(attempt), pid, now)
            if known is None:
                load.add(handler, self._share, 0.0)
                continue
            self._known[attempt] = known
            processor = self._share if known.processor is None else known.processor
            load.add(handler, processor, 100.0 * known.reading.memory / self._memory)
        return load

    def _look(self, known: _Known | None, pid: int | None, now: float) -> _Known | None:
        if known is not None and now - known.at < SAMPLE:
            return known
        reading = None if pid is None else self._read(pid)
        if reading is None:
            return known
        if known is None:
            return _Known(reading, now)
        used = max(0.0, reading.cpu - known.reading.cpu)
        return _Known(reading, now, self._share * used / (now - known.at))


_TICK: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def _read_proc(pid: int) -> Reading | None:
    """Return what /proc says of a process; None if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - a Path costs more than the read
            values = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Reading((int(values[11]) + int(values[12])) / _TICK, int(values[21]) * _PAGE)


def reader() -> Callable[[int], Reading | None]:
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
