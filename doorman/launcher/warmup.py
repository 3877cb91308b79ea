"""Warmup: what the zygote does once before it serves, so that none of its children has to."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
from collections.abc import Callable
from typing import TypeAlias, cast

from doorman import prctl
from doorman.launcher import Order, wire
from doorman.process import pidfd_inode

__all__ = ["Entry", "default_signals", "imported", "keep_standard_descriptors", "settle", "write_by_line"]

Entry: TypeAlias = Callable[[Order], int | None]
"""What a child runs; its value is the exit code."""


def keep_standard_descriptors() -> None:
    """Occupy 0, 1 and 2 where the manager has closed them, so that nothing else ever gets these numbers."""
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(null, True)
    os.close(null)


def default_signals() -> None:
    """Undo what the manager ignored or blocked when it started us: children must end by SIGTERM and be waited for."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def imported(start: wire.Start) -> Entry:
    """Import what the children need and return what they run. Raises whatever an import raises."""
    os.chdir(start.cwd)
    sys.path[:] = map(os.fsdecode, start.sys_path)
    for name in start.preload:
        importlib.import_module(name)
    entry = _find(start.entry)
    _refuse_threads()
    return entry


def settle() -> None:
    """Make what each child does, and the memory that each fork copies, small."""
    pidfd_inode(0)  # Remembers whether this kernel has inodes for processes.
    write_by_line()
    gc.collect()
    prctl.return_free_memory()
    gc.freeze()  # The collector of a child must not touch, and so copy, what it shares with us.


def write_by_line() -> None:
    """Have each line written at once and by itself: several processes may append to one file."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
            # Also under PYTHONUNBUFFERED: that would write the text of a print and its end one after the other.
            stream.reconfigure(line_buffering=True, write_through=False)  # type: ignore[union-attr]


def _find(entry: str) -> Entry:
    """Return what ``module:function`` names, or what ``module:function:argument`` returns when it is called once."""
    module, _, rest = entry.partition(":")
    function, _, argument = rest.partition(":")
    found = getattr(importlib.import_module(module), function)
    return cast(Entry, found(argument) if argument else found)


def _refuse_threads() -> None:
    threading = sys.modules.get("threading")
    threads = [thread.name for thread in threading.enumerate()[1:]] if threading else []
    if threads:
        raise RuntimeError(
            f"a preloaded module started threads ({', '.join(threads)}): forks would deadlock on its locks"
        )
