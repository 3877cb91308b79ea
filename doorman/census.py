"""Census: finding the one process on this host that a hello speaks of, whatever number it calls itself."""

from __future__ import annotations

import os
from collections.abc import Iterator

from doorman.errors import IdentityRefused, Refusal
from doorman.process import Process, start_time

__all__ = ["own_namespace", "process_by_inode", "process_in_namespace", "process_of", "still_there"]


def process_of(guess: int, inode: int | None, started: int | None, namespace: str, inside: int) -> Process:
    """Hold the process of which this is known. Raises IdentityRefused.

    ``guess`` is its number here, ``inside`` that in its own PID namespace. Two cases: by inode; by number and start
    time.
    """
    if inode is not None:
        process = process_by_inode(inode, guess=guess)
    else:
        process = process_in_namespace(namespace, inside, started or 0)
    if process is not None:
        return process
    if namespace == own_namespace() and start_time(guess) is not None:
        raise IdentityRefused(Refusal.OTHER_PROCESS, f"pid {guess} is not the process that said hello")
    raise IdentityRefused(Refusal.NO_SUCH_PROCESS, f"no process here calls itself pid {guess}")


def still_there(process: Process) -> Process:
    """Return the process. Raises IdentityRefused once it has ended."""
    if process.alive():
        return process
    raise IdentityRefused(Refusal.NO_SUCH_PROCESS, f"pid {process.pid} has ended")


def process_by_inode(inode: int, *, guess: int) -> Process | None:
    """Hold the process whose pidfd has this inode; None if none has. ``guess`` is a number to try first.

    A process in a nested PID namespace calls itself by another number, but its inode is the same there.
    """
    for pid in _guess_first(guess):
        process = _opened(pid)
        if process is None:
            continue
        if process.inode == inode:
            return process
        process.close()
    return None


def process_in_namespace(namespace: str, pid: int, started: int) -> Process | None:
    """Hold the process that has this number inside a PID namespace and this start time; None if none has.

    For kernels whose pidfds have no inode. Sees only the processes that this user may inspect.
    """
    for candidate in _guess_first(pid):
        if _namespace_of(candidate) != namespace or _number_inside(candidate) != pid:
            continue
        process = _opened(candidate)
        if process is not None and process.start_time == started:
            return process
    return None


def _guess_first(guess: int) -> Iterator[int]:
    yield guess
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdecimal() and int(entry.name) != guess:
                yield int(entry.name)


def _opened(pid: int) -> Process | None:
    try:
        return Process.open(pid)
    except ProcessLookupError:
        return None
    except OSError:
        # A number that is only a thread's: EINVAL until Linux 6.14, ENOENT since.
        return None


def _namespace_of(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")  # noqa: PTH115 - as in process.py
    except OSError:  # It has ended, or belongs to somebody else.
        return ""


def _number_inside(pid: int) -> int:
    """Return what the process calls itself in the innermost of its PID namespaces; 0 if it has ended."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:  # noqa: PTH123 - as in process.py
            numbers = [line.split() for line in file if line.startswith(b"NSpid:")]
    except OSError:
        return 0
    return int(numbers[0][-1]) if numbers else pid


def own_namespace() -> str:
    """Return the name of the PID namespace that this process lives in."""
    return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - as in process.py
