"""Cgroup: a control group in which all that one zygote forks is born, and can be ended without being found first.

Version 2 only, and only below the group of this very process, where that one is ours to divide. The rules are those of
the kernel's admin guide (cgroup-v2, "Delegation") and of systemd's page on delegation.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import time
from pathlib import Path
from typing import Final, Self

__all__ = ["ControlGroup"]

_PREFIX: Final = "doorman-"
_ATTEMPTS: Final = 5  # to make one, each taken away by another's clearing at that very moment
_NONE: Final = -1  # in place of a descriptor
_EVENTS: Final = 4096  # bytes of the file that tells whether anything lives; it has two short lines
_DELEGATED: Final = ("user.delegate", "trusted.delegate")  # extended attributes that systemd sets on what it gives away
_SYSTEMD: Final = Path("/run/systemd/system")  # there if, and only if, systemd is process 1


class ControlGroup:
    """A control group, held by a descriptor of its folder and a lock on it; false, and without effect, where none is.

    The lock goes with the descriptor to whoever gets a copy: a group that nobody has locked is nobody's any more.
    """

    def __init__(self, descriptor: int = _NONE) -> None:
        self._descriptor = descriptor

    @classmethod
    def create(cls) -> Self:
        """Make one below this process's own, unless that may not be divided. Ends what dead holders left there."""
        own = _own()
        if own is None or not _divisible(own):
            return cls()
        cls.remove_stale()
        for _ in range(_ATTEMPTS):
            folder = own / f"{_PREFIX}{os.getpid()}-{os.urandom(4).hex()}"
            try:
                folder.mkdir()
            except OSError:
                break
            group = cls(_locked(folder))
            if group and not group._usable():
                group.remove()
                group.close()
                break
            if group:
                return group
        return cls()

    @staticmethod
    def remove_stale(deadline: float = 0.0) -> None:
        """End what holders that were all killed have left below this process's own, and remove it.

        Waits until ``deadline`` at the most for what it kills; what ends later, the next call removes.
        """
        own = _own()
        # Those of other users are left alone by the kernel.
        for folder in own.glob(f"{_PREFIX}*") if own else ():
            left = ControlGroup(_locked(folder))
            with contextlib.suppress(OSError):
                left.kill()
                left._wait_until_empty(deadline)
                left.remove()
            left.close()

    def __bool__(self) -> bool:
        return self._descriptor != _NONE

    @property
    def descriptors(self) -> list[int]:
        """The descriptor of its folder, to be given away; empty where there is no group."""
        return [self._descriptor] if self else []

    def join(self) -> None:
        """Move this process into it; what it forks from now on is born there. Slow as several forks. Raises OSError."""
        self._write("cgroup.procs")

    def leave(self) -> None:
        """Move this process out, to the group around it. Takes as long as `join`. Raises OSError."""
        self._write("../cgroup.procs")

    def kill(self) -> None:
        """Kill all that is in it, and in groups below it, at once: nothing can fork faster."""
        # Another may have removed it, or this process have become a user who may not; a tick must not fail for that.
        with contextlib.suppress(OSError):
            self._write("cgroup.kill", b"1")

    def remove(self) -> None:
        """Remove it if nothing in it lives. What is left of it, the next that is made here removes."""
        if self:
            _remove(Path(f"/proc/self/fd/{self._descriptor}").readlink())

    def close(self) -> None:
        """Let go of it; it is no group any more. Closing twice is fine."""
        descriptor, self._descriptor = self._descriptor, _NONE
        if descriptor != _NONE:
            os.close(descriptor)

    def _usable(self) -> bool:
        """Tell whether the kernel can kill it, since Linux 5.14, and whether processes may be in it."""
        try:
            os.stat("cgroup.kill", dir_fd=self._descriptor)
            kind = os.open("cgroup.type", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._descriptor)
        except OSError:
            return False
        with os.fdopen(kind, "rb") as file:
            return file.read() == b"domain\n"

    def _wait_until_empty(self, deadline: float) -> None:
        events = os.open("cgroup.events", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._descriptor)
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        try:
            while b"populated 1" in os.pread(events, _EVENTS, 0) and (left := deadline - time.monotonic()) > 0:
                poll.poll(left * 1000)
        finally:
            os.close(events)

    def _write(self, name: str, text: bytes = b"0") -> None:
        if not self:
            return
        file = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._descriptor)
        try:
            os.write(file, text)
        finally:
            os.close(file)


def _own() -> Path | None:
    """Return the folder of the group that this process is in; None without version 2."""
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return None
    path = next((group.removeprefix("0::") for group in groups if group.startswith("0::")), None)
    for mount in mounts:
        place, _, kind = mount.partition(" - ")
        if path is not None and kind.startswith("cgroup2 "):
            root, point = map(_unescaped, place.split()[3:5])
            below = os.path.relpath(path, root)
            if not below.startswith(".."):
                return Path(point, below)
    return None


def _unescaped(word: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), word)


def _divisible(folder: Path) -> bool:
    """Tell whether it was given to us. Root may write anywhere, but what systemd has not given away is systemd's."""
    if not os.access(folder, os.W_OK):
        return False
    if os.geteuid() != 0 or not _SYSTEMD.is_dir():
        return True
    return any(_marked(each) for each in (folder, *folder.parents))


def _marked(folder: Path) -> bool:
    for name in _DELEGATED:
        with contextlib.suppress(OSError):
            if os.getxattr(folder, name) == b"1":
                return True
    return False


def _locked(folder: Path) -> int:
    """Return a descriptor that has the lock; _NONE if another has it, or the folder is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return _NONE
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.stat(folder)  # noqa: PTH116 - it may have been removed before it was locked
    except OSError:
        os.close(descriptor)
        return _NONE
    return descriptor


def _remove(folder: Path) -> None:
    """Remove a group and the groups of managers that ran in it, if none has anything in it that lives."""
    with contextlib.suppress(OSError):
        for below in folder.glob(f"{_PREFIX}*"):
            _remove(below)
        folder.rmdir()
