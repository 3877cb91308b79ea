"""Mortals: managers with a journal, each in a process of its own that can be killed at any moment."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from processes import said

from doorman.process import Process
from remit import Location, Server

__all__ = ["fixed", "held", "inode_of", "mortal", "slain"]

SUPPORT = Path(__file__).parent
BEGIN = """
import os, sys
sys.path.insert(0, {support!r})
from pathlib import Path
import chores, impostors
from internals import attempt_of
from doorman import ProcessManager, Task
from doorman.launcher.zygote import ZygoteLauncher
location, folder = sys.argv[1], Path(sys.argv[2])
def until(fact):
    while not fact():
        manager.tick()
        manager.wait(0.05)
def say(*words):
    print(*words, flush=True)
def forever():
    while True:
        manager.tick()
        manager.wait(0.05)
"""


def fixed(location: Location) -> Location:
    """Return a place that can be found again: of a port that the system chooses, the one that it chose."""
    with Server(location) as server:
        return server.location


@contextlib.contextmanager
def mortal(code: str, location: Location, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a manager's code, which finds ``location`` and ``folder``; its end is a violent one."""
    command = [sys.executable, "-c", BEGIN.format(support=str(SUPPORT)) + code, str(location), str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def slain(code: str, location: Location, folder: Path) -> list[str]:
    """Run a manager until it says something, kill it, and return its words."""
    with mortal(code, location, folder) as process:
        words = said(process).split()
        assert words, "the manager ended without a word"
        return words


@contextlib.contextmanager
def held(pid: int) -> Iterator[Process]:
    """Hold a process that the test is to see the end of; what is left of it is killed."""
    with Process.open(pid) as process:
        try:
            yield process
        finally:
            process.signal(signal.SIGCONT)
            process.signal_group(signal.SIGKILL)


def inode_of(pid: int) -> int | None:
    """Return by what the kernel knows the process with this number now; None if there is none."""
    try:
        with Process.open(pid) as process:
            return process.inode if process.alive() else None
    except OSError:
        return None
