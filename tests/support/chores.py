"""What the tests' tasks do. Imports next to nothing: each child would pay for it."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import NoReturn

from doorman import current_task


def own_inode() -> int:
    """Return the number by which the kernel knows this process alone."""
    pidfd = os.pidfd_open(os.getpid())
    try:
        return os.fstat(pidfd).st_ino
    finally:
        os.close(pidfd)


def sign_in(path: Path) -> None:
    """Write down who this process is, and when its own code began."""
    began = time.monotonic_ns()
    part = path.with_name(f"{path.name}.part")
    part.write_text(f"{os.getpid()} {own_inode()} {began}")
    part.rename(path)


def vouch(number: int) -> tuple[int, int, int]:
    """Say who this process is, and what it was given."""
    return os.getpid(), own_inode(), number


def count(child: int, events: int) -> None:
    """Emit numbers as fast as it can, and end right after the last."""
    task = current_task()
    for number in range(events):
        task.emit("count", child, number)


def stay(path: Path | None = None) -> NoReturn:
    """Say that it is up, then run until it is stopped."""
    if path is not None:
        part = path.with_name(f"{path.name}.part")
        part.write_text(f"{os.getpid()}")
        part.rename(path)  # Whoever sees it can read it.
    hear_signals()


def hear_signals() -> NoReturn:
    """Wait for ever, and run the handler of every signal that comes.

    Not by `signal.pause`: a signal just before it would be handled only when another one comes.
    """
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    # A signal from before this line has its handler run by now, one from after it leaves a byte.
    while True:
        os.read(woken, 1)


def stay_stubbornly(path: Path) -> NoReturn:
    """The same, deaf to SIGTERM, as some programs are."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stay(path)


def stay_with_child(path: Path) -> NoReturn:
    """The same, with a child of its own, which is as deaf."""
    child = os.fork()
    if not child:
        stay_stubbornly(path)
    stay()


def obey(path: Path) -> list[str]:
    """Do what the manager says until it says stop."""
    heard: list[str] = []
    stopped = threading.Event()
    task = current_task()
    task.on("word", heard.append)
    task.on("stop", stopped.set)
    path.write_text("up")
    stopped.wait(60)
    return heard


def answer(number: int) -> tuple[int, int]:
    """Say who answered."""
    return number * 2, os.getpid()


def fail_until(path: Path, attempt: int) -> int:
    """Raise until it is tried for the ``attempt``-th time."""
    with path.open("a") as file:
        file.write("tried\n")
    if current_task().attempt < attempt:
        raise OSError("not yet")
    return current_task().attempt


def die(number: int) -> NoReturn:
    """Be killed by a signal."""
    os.kill(os.getpid(), number)
    stay()


def wait_for_go(path: Path) -> int:
    """Say that it is up, wait until a file beside that one is named ``go``, and tell who waited."""
    path.write_text(f"{os.getpid()}")
    while not path.with_name("go").exists():
        time.sleep(0.01)
    return os.getpid()
