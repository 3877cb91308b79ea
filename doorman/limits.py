"""Resource limits of a task's process, and of each call in a worker of a pool."""

from __future__ import annotations

import contextlib
import os
import resource
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, replace
from typing import Any, Final

from doorman.errors import LimitNotApplied
from remit.options import check_count

__all__ = ["Limits"]

REPORT_RESERVE_BYTES: Final = 64 << 20  # above the memory limit, for the report of the outcome
CPU_GRACE_S: Final = 1  # processor time between SIGXCPU at the limit and SIGKILL
# CPUCLOCK_PROF of this process, which the kernel compares with RLIMIT_CPU. It counts in ticks, so on a busy machine it
# may be far ahead of time.process_time, which is exact.
CPU_LIMIT_CLOCK: Final = -8
_LEAST: Final = {"memory": 1, "cpu": 1, "files": 0, "processes": 0, "core": 0, "nice": -20, "umask": 0}
_MOST: Final = {"nice": 19, "umask": 0o777}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one process; None keeps the limit of the manager's process. Raises TypeError, ValueError.

    memory -- bytes of address space (RLIMIT_AS); above it, Python raises MemoryError
    cpu -- whole seconds of processor time; above it, the kernel sends SIGXCPU, and SIGKILL a second later
    files -- number of open descriptors
    processes -- number of all processes and threads of the user; the kernel does not apply it to root
    core -- bytes of a core dump; 0 for none
    nice -- niceness, from -20 (first) to 19 (last)
    affinity -- numbers of the CPUs that the process may use
    umask -- permissions that new files do not get, such as 0o077
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
        for name, least in _LEAST.items():
            if (value := getattr(self, name)) is not None:
                check_count(f"limit {name}", value, least=least, most=_MOST.get(name, (1 << 63) - 1))
        if self.affinity is not None:
            object.__setattr__(self, "affinity", _cpus(self.affinity))


_original_files: int | None = None  # the soft limit before `raise_descriptor_limit`


def raise_descriptor_limit() -> None:
    """Raise the soft limit of open descriptors of this process to the hard one, because each task needs some of them.

    The usual soft limit, 1024, is low for the sake of programs that use select(). Processes of tasks get it back.
    """
    global _original_files
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            _original_files = soft if _original_files is None else _original_files


def original_descriptor_limit() -> int | None:
    """Return the soft limit of open descriptors before it was raised; None if it was not."""
    return _original_files


def set_descriptor_limit(soft: int) -> None:
    """Set the soft limit of open descriptors, unless it is above the hard one."""
    with contextlib.suppress(OSError, ValueError):
        _set_soft_limit(resource.RLIMIT_NOFILE, soft)


def apply_limits(limits: Limits, *, called: bool) -> None:
    """Apply all limits but memory to this process, and check that `limit_memory` can apply that one.

    ``called`` is True if this process calls a function, and False if a program replaces it. Raises LimitNotApplied.
    """
    steps: dict[str, Callable[[Any], object]] = {
        "umask": os.umask,
        "affinity": _set_affinity,
        "nice": _set_nice,
        "core": lambda size: _set_limit(resource.RLIMIT_CORE, size),
        "cpu": lambda seconds: _set_limit(resource.RLIMIT_CPU, seconds, CPU_GRACE_S),
        "processes": lambda number: _set_limit(resource.RLIMIT_NPROC, number),
        "memory": lambda size: _check_memory(size, called=called),
        # Last: the other steps open files in /proc.
        "files": lambda number: _set_limit(resource.RLIMIT_NOFILE, number),
    }
    for name, step in steps.items():
        if (value := getattr(limits, name)) is not None:
            try:
                step(value)
            except (OSError, ValueError) as error:
                raise LimitNotApplied(
                    f"limit {name}={_shown(name, value)} cannot be applied: {error}; "
                    "give another value, or permit it to the manager's process"
                ) from error


def limit_memory(limits: Limits | None, *, reserve: int = 0) -> None:
    """Limit the memory of this process. The process may raise the limit later, by up to ``reserve`` bytes."""
    if limits is not None and limits.memory is not None:
        _set_limit(resource.RLIMIT_AS, limits.memory, reserve)


@contextlib.contextmanager
def memory_limited(limits: Limits | None) -> Iterator[None]:
    """Limit the memory of this process within the block; after the block there is memory for the report."""
    limit_memory(limits, reserve=REPORT_RESERVE_BYTES)
    try:
        yield
    finally:
        if limits is not None and limits.memory is not None:
            _set_soft_limit(resource.RLIMIT_AS, None)


def check_limits(limits: Limits | None) -> None:
    """Raise TypeError unless ``limits`` is None or a `Limits`."""
    if limits is not None and not isinstance(limits, Limits):
        raise TypeError(f"limits is a Limits, such as Limits(memory=1 << 30), not {limits!r}")


def worker_limits(limits: Limits | None) -> Limits | None:
    """Return the limits for the whole life of a pool's worker, without those of each call. Raises TypeError."""
    check_limits(limits)
    return None if limits is None else replace(limits, cpu=None)


class CallLimits:
    """Limits memory and processor time of each call, a ``with`` block, in a worker that has `worker_limits`."""

    def __init__(self, limits: Limits) -> None:
        self._memory, self._cpu = limits.memory, limits.cpu
        # Guards `_inside` and the memory limit, which all threads share: `suspended` runs in any thread.
        self._lock = threading.Lock()
        self._inside = False
        self._set_memory_limit(None)

    def __enter__(self) -> None:
        if self._cpu is not None:
            # Only the soft limit, because a hard limit cannot be raised again. SIGXCPU ends the process, too.
            _set_soft_limit(resource.RLIMIT_CPU, int(time.clock_gettime(CPU_LIMIT_CLOCK)) + 1 + self._cpu)
        with self._lock:
            self._inside = True
            self._set_memory_limit(self._memory)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside = False
            self._set_memory_limit(None)
        if self._cpu is not None:
            _set_soft_limit(resource.RLIMIT_CPU, None)

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Suspend the memory limit for a block of the worker's code, in any thread, also during a call."""
        with self._lock:
            self._set_memory_limit(None)
            try:
                yield
            finally:
                if self._inside:
                    self._set_memory_limit(self._memory)

    def reset_after_fork(self) -> None:
        """Replace the lock in a fork that a call has made: a thread that the fork does not have may hold it."""
        self._lock = threading.Lock()

    def _set_memory_limit(self, size: int | None) -> None:
        if self._memory is not None:
            _set_soft_limit(resource.RLIMIT_AS, size)


def _set_affinity(cpus: frozenset[int]) -> None:
    for thread in _threads():
        os.sched_setaffinity(thread, cpus)
    # The kernel silently ignores CPUs that do not exist.
    if missing := cpus - os.sched_getaffinity(0):
        raise ValueError(f"there is no CPU {', '.join(map(str, sorted(missing)))} for this process")


def _set_nice(nice: int) -> None:
    for thread in _threads():
        os.setpriority(os.PRIO_PROCESS, thread, nice)


def _check_memory(memory: int, *, called: bool) -> None:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard != resource.RLIM_INFINITY and memory > hard:
        raise ValueError(f"this process may use at most {hard} bytes")
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - once
        used = int(file.read().split()[0]) * resource.getpagesize()
    if called and used >= memory:
        raise ValueError(f"a worker process uses {used} bytes of address space before the task begins")


def _set_limit(kind: int, soft: int, reserve: int = 0) -> None:
    """Set a soft limit, and the hard limit ``reserve`` above it. Never raises the hard limit, which only root may."""
    before = resource.getrlimit(kind)[1]
    hard = soft + reserve if before == resource.RLIM_INFINITY else min(before, soft + reserve)
    resource.setrlimit(kind, (soft, max(hard, soft)))


def _set_soft_limit(kind: int, soft: int | None) -> None:
    """Set a soft limit; None raises it to the hard limit."""
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (hard if soft is None else soft, hard))


def _threads() -> list[int]:
    # Niceness and affinity belong to a thread, and a transport has threads.
    return [int(name) for name in os.listdir("/proc/self/task")]  # noqa: PTH208 - numbers, not paths


def _cpus(value: object) -> frozenset[int]:
    if not isinstance(value, Set | Iterable) or isinstance(value, str | bytes):
        raise TypeError(f"limit affinity is a set of CPU numbers, such as {{0, 1}}, not {value!r}")
    cpus = frozenset(value)
    if not cpus or not all(isinstance(cpu, int) and not isinstance(cpu, bool) and cpu >= 0 for cpu in cpus):
        raise ValueError(f"limit affinity is a set of CPU numbers, such as {{0, 1}}, not {value!r}")
    return cpus


def _shown(name: str, value: object) -> str:
    return f"{value:#o}" if name == "umask" else f"{set(value)}" if isinstance(value, frozenset) else f"{value}"
