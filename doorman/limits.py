"""Confinement: what each call of a worker may use, apart from what the worker needs to tell how the call ended."""

from __future__ import annotations

import contextlib
import os
import resource
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, replace
from typing import Final

from doorman.errors import LimitNotApplied

__all__ = ["CallLimits", "Limits", "worker_limits"]


REPORT_RESERVE_BYTES: Final = 64 << 20
"""Bytes of memory beyond its limit in which a task's process tells how the task ended."""
CPU_GRACE_S: Final = 1
"""Seconds of processor time between the limit's SIGXCPU and SIGKILL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one process may use; None leaves what the manager's processes have anyway.

    memory -- bytes of address space (RLIMIT_AS): more raises MemoryError in Python
    cpu -- whole seconds of processor time: more is SIGXCPU, and SIGKILL a second later
    files -- descriptors open at once
    processes -- processes and threads of its user, all together; the kernel asks root for nothing
    core -- bytes of a core dump; 0 for none
    nice -- niceness, from -20 (first) to 19 (last)
    affinity -- the numbers of the CPUs that it may run on
    umask -- the permissions that files it makes do not get, such as 0o077

    Raises TypeError, ValueError.
    """

    memory: int | None = None
    cpu: int | None = None
    files: int | None = None
    processes: int | None = None
    core: int | None = None
    nice: int | None = None
    affinity: frozenset[int] | None = None
    umask: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("memory", 1), ("cpu", 1), ("files", 0), ("processes", 0), ("core", 0)):
            self._check_number(name, least, (1 << 63) - 1)
        self._check_number("nice", -20, 19)
        self._check_number("umask", 0, 0o777)
        if self.affinity is not None:
            object.__setattr__(self, "affinity", _cpus(self.affinity))

    def apply(self, *, called: bool) -> None:
        """Limit this process, but for its memory, and see that `confine` can, with a callable if ``called``.

        Raises LimitNotApplied.
        """
        steps: list[tuple[str, Callable[[], None]]] = [
            ("umask", self._set_umask),
            ("affinity", self._set_affinity),
            ("nice", self._set_nice),
            ("core", lambda: _set(resource.RLIMIT_CORE, self.core)),
            ("cpu", lambda: _set(resource.RLIMIT_CPU, self.cpu, CPU_GRACE_S)),
            ("processes", lambda: _set(resource.RLIMIT_NPROC, self.processes)),
            ("memory", lambda: self._check_memory(called=called)),
            ("files", lambda: _set(resource.RLIMIT_NOFILE, self.files)),
        ]
        for name, step in steps:
            if (wanted := getattr(self, name)) is not None:
                try:
                    step()
                except (OSError, ValueError) as error:
                    raise LimitNotApplied(
                        f"limit {name}={_shown(name, wanted)} cannot be applied: {error}; "
                        "give another one, or the manager's own process the right to it"
                    ) from error

    def limit_memory(self, *, room: int = 0) -> None:
        """Limit this process's memory, up to ``room`` bytes below what it may raise that limit to again."""
        if self.memory is not None:
            _set(resource.RLIMIT_AS, self.memory, room)

    @contextlib.contextmanager
    def memory_limited(self) -> Iterator[None]:
        """Limit this process's memory for a block: after it there is room to tell how the block ended."""
        self.limit_memory(room=REPORT_RESERVE_BYTES)
        try:
            yield
        finally:
            if self.memory is not None:
                hard = resource.getrlimit(resource.RLIMIT_AS)[1]
                resource.setrlimit(resource.RLIMIT_AS, (hard, hard))

    def _check_number(self, name: str, least: int, most: int) -> None:
        value = getattr(self, name)
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"limit {name} is a whole number, not {value!r}")
        if not least <= value <= most:
            raise ValueError(f"limit {name} is from {least} to {most}, not {value!r}")

    def _set_umask(self) -> None:
        assert self.umask is not None
        os.umask(self.umask)

    def _set_affinity(self) -> None:
        assert self.affinity is not None
        for thread in _threads():
            os.sched_setaffinity(thread, self.affinity)
        # The kernel silently leaves out those that there are not.
        if missing := self.affinity - os.sched_getaffinity(0):
            raise ValueError(f"there is no CPU {', '.join(map(str, sorted(missing)))} for this process")

    def _set_nice(self) -> None:
        assert self.nice is not None
        for thread in _threads():
            os.setpriority(os.PRIO_PROCESS, thread, self.nice)

    def _check_memory(self, *, called: bool) -> None:
        assert self.memory is not None
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        if hard != resource.RLIM_INFINITY and self.memory > hard:
            raise ValueError(f"this process may have at most {hard} bytes")
        if called and (taken := _address_space()) >= self.memory:
            raise ValueError(f"a process that calls a task takes up {taken} bytes of addresses before the task begins")


def _set(kind: int, wanted: int | None, room: int = 0) -> None:
    """Set a limit, and beyond it a hard one, but no higher than that one was if it may not be raised."""
    assert wanted is not None
    before = resource.getrlimit(kind)[1]
    hard = wanted + room if before == resource.RLIM_INFINITY else min(before, wanted + room)
    resource.setrlimit(kind, (wanted, max(hard, wanted)))


def _threads() -> list[int]:
    """Return the threads of this process: a transport's are to be as nice as the task."""
    return [int(name) for name in os.listdir("/proc/self/task")]  # noqa: PTH208 - numbers, not paths


def _address_space() -> int:
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - once
        return int(file.read().split()[0]) * resource.getpagesize()


def _cpus(wanted: object) -> frozenset[int]:
    if not isinstance(wanted, Set | Iterable) or isinstance(wanted, str | bytes):
        raise TypeError(f"limit affinity is a set of CPU numbers, such as {{0, 1}}, not {wanted!r}")
    cpus = frozenset(wanted)
    if not cpus or not all(isinstance(cpu, int) and not isinstance(cpu, bool) and cpu >= 0 for cpu in cpus):
        raise ValueError(f"limit affinity is a set of CPU numbers, such as {{0, 1}}, not {wanted!r}")
    return cpus


def _shown(name: str, wanted: object) -> str:
    return f"{wanted:#o}" if name == "umask" else f"{set(wanted)}" if isinstance(wanted, frozenset) else f"{wanted}"


COUNTED: Final = -8
"""The clock by which the kernel counts this process's seconds for RLIMIT_CPU (CPUCLOCK_PROF of the process itself).

It is counted in ticks, and on a busy machine may be far ahead of `time.process_time`, which is exact.
"""


class CallLimits:
    """A block is a call. Memory is limited in it and nowhere else; seconds of processor time are counted anew.

    It is made in a process that is limited already, as any task's, with some room for what is to be told.
    """

    def __init__(self, limits: Limits) -> None:
        self._memory, self._cpu = limits.memory, limits.cpu
        self._lock = threading.Lock()
        self._inside = False
        self._raise_memory()

    def __enter__(self) -> None:
        if self._cpu is not None:
            hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
            # Only the soft limit, whose SIGXCPU ends the process as well: the hard one could not be raised again.
            resource.setrlimit(resource.RLIMIT_CPU, (int(time.clock_gettime(COUNTED)) + 1 + self._cpu, hard))
        with self._lock:
            self._inside = True
            self._lower_memory()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside = False
            self._raise_memory()
        if self._cpu is not None:
            hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
            resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """For a block of the worker's own, in whatever thread, there is room beyond what the call may have."""
        with self._lock:
            self._raise_memory()
            try:
                yield
            finally:
                if self._inside:
                    self._lower_memory()

    def reset_after_fork(self) -> None:
        """In a fork of a call's: the lock may be held by a thread that is not here."""
        self._lock = threading.Lock()

    def _lower_memory(self) -> None:
        if self._memory is not None:
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            resource.setrlimit(resource.RLIMIT_AS, (self._memory, hard))

    def _raise_memory(self) -> None:
        if self._memory is not None:
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def worker_limits(limits: Limits | None) -> Limits | None:
    """Return those limits of a worker's that hold from its first call to its end. Raises TypeError."""
    if limits is not None and not isinstance(limits, Limits):
        raise TypeError(f"limits is a Limits, such as Limits(memory=1 << 30), not {limits!r}")
    return None if limits is None else replace(limits, cpu=None)
