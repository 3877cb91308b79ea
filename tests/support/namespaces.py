"""Namespaces: code run in a PID namespace of its own, where the next process gets the number that a test wants."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from waiting import DEADLINE

from doorman.process import Process

__all__ = [
    "FRESH",
    "LAST_PID",
    "apart",
    "born_as",
    "ended_by",
    "gone",
    "host",
    "inside",
    "needs_inodes",
    "needs_namespaces",
]

FRESH = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
"""Starts what follows as number 1 of a PID namespace with a /proc of its own."""
LAST_PID = Path("/proc/sys/kernel/ns_last_pid")
"""The number after which the namespace looks for the next."""
_RUN = """
import importlib, json, sys
sys.path[:0] = json.loads(sys.argv[1])
function = getattr(importlib.import_module(sys.argv[2]), sys.argv[3])
print(json.dumps(function(*json.loads(sys.argv[4]))), flush=True)
"""


def needs_namespaces(*flags: str) -> None:
    """Skip, saying why, where none can be made; in CI, where they can be, that is a failure."""
    trouble = _trouble(flags)
    if trouble:
        _miss(f"no namespaces ({' '.join(flags)}) here: {trouble}")


def needs_inodes() -> None:
    """Skip, saying why, where the kernel gives no process an inode of its own; in CI that is a failure."""
    with Process.open(os.getpid()) as own:
        if own.inode is None:
            _miss(f"Linux {os.uname().release} has no inodes for processes: that takes 6.9, with 64 bits")


def _miss(what: str) -> NoReturn:
    (pytest.fail if os.environ.get("CI") else pytest.skip)(what)


def inside(function: Callable[..., Any], *arguments: Any, flags: tuple[str, ...] = ()) -> Any:
    """Return what a function of a support module returns in a fresh PID namespace."""
    needs_namespaces(*flags)
    return _told(host(function, *arguments, prefix=(*FRESH, *flags)))


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what it returns in a process of its own, where it may do to its children what it wants."""
    return _told(host(function, *arguments, prefix=()))


@contextlib.contextmanager
def host(
    function: Callable[..., Any], *arguments: Any, prefix: tuple[str, ...] = FRESH
) -> Iterator[subprocess.Popen[str]]:
    """Start a function of a support module in a fresh PID namespace, with pipes; it ends with the block."""
    words = [json.dumps(sys.path), function.__module__, function.__qualname__, json.dumps(arguments)]
    command = [*prefix, sys.executable, "-c", _RUN, *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def born_as(pid: int) -> int | None:
    """Start a stranger, leader of a group, that gets this very number; None if another process was faster."""
    LAST_PID.write_text(str(pid - 1))
    child = os.posix_spawn("/bin/sleep", ["sleep", "1000"], {}, setpgroup=0)
    if child == pid:
        return child
    os.kill(child, signal.SIGKILL)  # by number: our own child, not reaped
    os.waitpid(child, 0)
    return None


def ended_by(stranger: int) -> int:
    """End a stranger with SIGUSR1; return the signal that ended it: another one if somebody was before us."""
    os.kill(stranger, signal.SIGUSR1)  # by number: our own child, not reaped
    return os.WTERMSIG(os.waitpid(stranger, 0)[1])


def gone(pid: int) -> None:
    """Wait until nobody has this number."""
    deadline = time.monotonic() + DEADLINE
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, f"pid {pid} is there still"
        time.sleep(0.0002)


def _told(running: contextlib.AbstractContextManager[subprocess.Popen[str]]) -> Any:
    with running as process:
        words, _ = process.communicate(timeout=2 * DEADLINE)
        assert process.returncode == 0, "it failed: see its standard error"
    return json.loads(words)


@functools.cache
def _trouble(flags: tuple[str, ...]) -> str:
    if not sys.platform.startswith("linux"):
        return "not Linux"
    command = [*FRESH, *flags, "test", "-w", str(LAST_PID)]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE)
    except OSError as error:
        return f"{command[0]}: {error}"
    return "" if tried.returncode == 0 else tried.stderr.strip() or f"{LAST_PID} cannot be written"
