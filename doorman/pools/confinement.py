"""Confinement: what each call of a worker may use, apart from what the worker needs to tell how the call ended."""

from __future__ import annotations

import contextlib
import resource
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from doorman.policy.limits import Limits

__all__ = ["Confinement", "for_life"]

COUNTED: Final = -8
"""The clock by which the kernel counts this process's seconds for RLIMIT_CPU (CPUCLOCK_PROF of the process itself).

It is counted in ticks, and on a busy machine may be far ahead of `time.process_time`, which is exact.
"""


class Confinement:
    """A block is a call. Memory is limited in it and nowhere else; seconds of processor time are counted anew.

    It is made in a process that is limited already, as any task's, with some room for what is to be told.
    """

    def __init__(self, limits: Limits) -> None:
        self._memory, self._cpu = limits.memory, limits.cpu
        self._lock = threading.Lock()
        self._inside = False
        self._lift()

    def __enter__(self) -> None:
        if self._cpu is not None:
            hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
            # Only the soft limit, whose SIGXCPU ends the process as well: the hard one could not be raised again.
            resource.setrlimit(resource.RLIMIT_CPU, (int(time.clock_gettime(COUNTED)) + 1 + self._cpu, hard))
        with self._lock:
            self._inside = True
            self._confine()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside = False
            self._lift()
        if self._cpu is not None:
            hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
            resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        """For a block of the worker's own, in whatever thread, there is room beyond what the call may have."""
        with self._lock:
            self._lift()
            try:
                yield
            finally:
                if self._inside:
                    self._confine()

    def forked(self) -> None:
        """In a fork of a call's: the lock may be held by a thread that is not here."""
        self._lock = threading.Lock()

    def _confine(self) -> None:
        if self._memory is not None:
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            resource.setrlimit(resource.RLIMIT_AS, (self._memory, hard))

    def _lift(self) -> None:
        if self._memory is not None:
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def for_life(limits: Limits | None) -> Limits | None:
    """Return those limits of a worker's that hold from its first call to its end. Raises TypeError."""
    if limits is not None and not isinstance(limits, Limits):
        raise TypeError(f"limits is a Limits, such as Limits(memory=1 << 30), not {limits!r}")
    return None if limits is None else replace(limits, cpu=None)
