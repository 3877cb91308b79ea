"""Prctl: what a process asks of the system that Python has no words for: about its parent, its orphans, its memory."""

from __future__ import annotations

import ctypes
import os
import signal

__all__ = ["adopt_orphans", "die_with_parent", "return_free_memory"]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)
_prctl = getattr(_libc, "prctl", None)  # Absent where there is no Linux.


def die_with_parent(parent: int) -> bool:
    """Have the kernel kill this process when its parent ends; False if ``parent`` is no longer its parent.

    The kernel counts the *thread* that made this process as its parent: only for children of single-threaded
    processes and for programs started by a thread that stays.
    """
    _ask(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have ended before the kernel was asked; then nothing would ever come.
    return os.getppid() == parent


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parents end, however deep they are."""
    _ask(_PR_SET_CHILD_SUBREAPER, 1)


def return_free_memory() -> None:
    """Give back to the kernel what is free in the heap: a fork would copy its page tables for nothing."""
    trim = getattr(_libc, "malloc_trim", None)  # Absent where the C library is not the GNU one.
    if trim is not None:
        trim(0)


def _ask(option: int, value: int) -> None:
    if _prctl is None:
        raise OSError("prctl is only on Linux")
    if _prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
