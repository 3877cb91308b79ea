"""Waiting for what launchers and processes say, with a deadline."""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from doorman.launcher import DescendantsLeft, Event, Exited, Launched, Launcher, LaunchFailed, Order
from doorman.launcher.command import CommandLauncher
from doorman.launcher.zygote import ZygoteLauncher
from doorman.process import Process

DEADLINE = 30.0
"""Seconds after which what has not come never comes."""
SUPPORT = str(Path(__file__).parent)
ENTRIES = str(Path(__file__).with_name("entries.py"))


def zygote_of(*path: str, preload: Sequence[str] = ()) -> ZygoteLauncher:
    return ZygoteLauncher(entry="entries:run", sys_path=[SUPPORT, *path, *sys.path], preload=preload)


def commands(*prefix: str, inherits: bool = True) -> CommandLauncher:
    return CommandLauncher(prefix, inherits=inherits, worker=[ENTRIES])


def order(attempt: str, do: str, **wanted: Any) -> Order:
    launch = {name: wanted.pop(name) for name in ("env", "cwd", "stdout", "stderr", "detach") if name in wanted}
    return Order(attempt, b"s" * 32, json.dumps({"do": do, **wanted}).encode(), **launch)


_left: WeakKeyDictionary[Launcher, list[Event]] = WeakKeyDictionary()
"""Events that `launched` has polled and not returned: the next call of `hear` returns them first."""


def hear(launcher: Launcher, enough: Callable[[list[Event]], object]) -> list[Event]:
    """Poll until what was heard is enough; kill the descendants that a process leaves, as a manager does."""
    heard = _left.pop(launcher, [])
    deadline = time.monotonic() + DEADLINE
    while True:
        for event in launcher.poll():
            if isinstance(event, DescendantsLeft):
                launcher.kill(event.attempt)
            else:
                heard.append(event)
        if enough(heard):
            return heard
        left = deadline - time.monotonic()
        assert left > 0, f"not within {DEADLINE} s: {heard}"
        select.select([launcher.fileno()], [], [], left)


def until_over(launcher: Launcher, count: int = 1) -> list[Event]:
    return hear(launcher, lambda heard: sum(isinstance(event, (Exited, LaunchFailed)) for event in heard) >= count)


def launched(launcher: ZygoteLauncher | CommandLauncher) -> Process:
    """Return the process of the only order; what came with the word of it, such as its end, is left to be polled."""
    event, *rest = hear(launcher, bool)
    assert isinstance(event, Launched), event
    _left[launcher] = rest
    return event.process


def exit_of(launcher: Launcher, wanted: Order) -> Exited:
    launcher.launch(wanted)
    last = until_over(launcher)[-1]
    assert isinstance(last, Exited), last
    return last


def ended(process: Process) -> bool:
    return process.wait(DEADLINE)


@contextmanager
def fifo(path: Path) -> Iterator[int]:
    """A FIFO's reading end: at its end of file, all who wrote are gone."""
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        yield reader
    finally:
        os.close(reader)


def opened(reader: int) -> bool:
    """Wait for a writer's word."""
    return bool(select.select([reader], [], [], DEADLINE)[0]) and os.read(reader, 1) == b"!"


def holders(path: Path) -> list[Process]:
    """Return every other process that has the FIFO open, held by its pidfd: what nobody else can find any more."""
    found = []
    numbers = {int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()}
    for pid in numbers - {os.getpid()}:
        with suppress(OSError):  # Gone, or not ours to look at.
            process = Process.open(pid)
            if str(path) in map(os.readlink, Path(f"/proc/{pid}/fd").iterdir()):
                found.append(process)
    return found


def abandoned(reader: int) -> bool:
    """Wait until no process has the FIFO open for writing any more."""
    poll = select.poll()
    poll.register(reader, 0)
    return any(mask & select.POLLHUP for _, mask in poll.poll(DEADLINE * 1000))
