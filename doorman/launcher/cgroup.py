"""A control group for one zygote and all its descendants, which the kernel can kill together.

Requires cgroup v2 and that the group of this process is delegated to this user. The rules are in the kernel's admin
guide (cgroup-v2, "Delegation") and in systemd's page on delegation.
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

from doorman.process import Descriptors

_PREFIX: Final = "doorman-"
_ATTEMPTS: Final = 5  # to create a group: between mkdir and lock another manager may remove it as stale
_NONE: Final = -1  # instead of a descriptor
_EVENTS_BYTES: Final = 4096  # more than cgroup.events has, which is two short lines
_DELEGATED: Final = ("user.delegate", "trusted.delegate")  # attributes that systemd sets on a delegated group
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")  # a space, tab, newline or backslash in mountinfo
SYSTEMD_FOLDER: Final = Path("/run/systemd/system")  # exists if, and only if, systemd is process 1


class ControlGroup:
    """A control group, held by a locked descriptor of its folder. A false object has no group; its methods do nothing.

    The flock belongs to the open file, so a process that receives the descriptor also holds the lock. A group without a
    lock is stale: all processes that held it have ended.
    """

    def __init__(self, descriptor: int = _NONE) -> None:
        self._descriptor = descriptor

    @classmethod
    def create(cls) -> Self:
        """Create a group below the group of this process, if that is delegated. Removes stale groups first."""
        own = own_group()
        if own is None or not is_delegated(own):
            return cls()
        cls.remove_stale()
        for _ in range(_ATTEMPTS):
            folder = own / f"{_PREFIX}{os.getpid()}-{os.urandom(4).hex()}"
            try:
                folder.mkdir()
            except OSError:
                break
            # Locked before use: an unlocked group is stale for other managers, which would kill its processes.
            group = cls(_locked(folder))
            if group._usable():
                return group
            group.remove()
            group.close()
        return cls()

    @staticmethod
    def remove_stale(deadline: float = 0.0) -> None:
        """Kill the processes in stale groups below the group of this process, and remove these groups.

        Waits until ``deadline`` at most for the processes to end; the next call removes the remaining groups.
        """
        own = own_group()
        # The kernel refuses all of this for groups of other users.
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
        """The descriptor of the group's folder, for another process; empty without a group."""
        return [self._descriptor] if self else []

    def join(self) -> None:
        """Move this process and its later forks into the group; as slow as several forks. Raises OSError."""
        self._write("cgroup.procs")

    def leave(self) -> None:
        """Move this process to the parent group; as slow as `join`. Raises OSError."""
        self._write("../cgroup.procs")

    def kill(self) -> None:
        """Kill all processes in the group and below it, in one step of the kernel: no fork can escape."""
        # The group may be removed, or this process may have changed its user: a tick must not fail because of that.
        with contextlib.suppress(OSError):
            self._write("cgroup.kill", b"1")

    def remove(self) -> None:
        """Remove the group if no process is in it; otherwise the next `create` here removes it."""
        if self:
            _remove(Path(f"/proc/self/fd/{self._descriptor}").readlink())

    def close(self) -> None:
        """Close the descriptor; the last copy also releases the lock. Closing twice is fine."""
        descriptor, self._descriptor = self._descriptor, _NONE
        if descriptor != _NONE:
            os.close(descriptor)

    def _usable(self) -> bool:
        """Return whether there is a group, with cgroup.kill (Linux 5.14), that may contain processes."""
        try:
            os.stat("cgroup.kill", dir_fd=self._descriptor)
            kind = os.open("cgroup.type", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._descriptor)
        except OSError:
            return False
        with os.fdopen(kind, "rb") as file:
            return file.read() == b"domain\n"

    def _wait_until_empty(self, deadline: float) -> None:
        opened = Descriptors([os.open("cgroup.events", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._descriptor)])
        poll = select.poll()
        poll.register(opened[0], select.POLLPRI)
        while b"populated 1" in os.pread(opened[0], _EVENTS_BYTES, 0) and (left := deadline - time.monotonic()) > 0:
            poll.poll(left * 1000)

    def _write(self, name: str, text: bytes = b"0") -> None:
        if self:
            opened = Descriptors([os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._descriptor)])
            os.write(opened[0], text)


def own_group() -> Path | None:
    """Return the folder of this process's control group; None without cgroup v2."""
    return next(iter(own_groups()), None)


def own_groups(proc: Path = Path("/proc/self"), controller: str = "") -> list[Path]:
    """Return the folders of a process's control group and of the groups around it, as far as they are mounted.

    Of cgroup v2, or of the hierarchy of version 1 that has the controller. ``proc`` -- the process's folder in /proc
    """
    try:
        groups = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines()]
        mounts = (proc / "mountinfo").read_text().splitlines()
    except OSError:
        return []
    path = next((path for _, controllers, path in groups if controller in controllers.split(",")), None)
    for mount in mounts:
        place, _, kind = mount.partition(" - ")
        filesystem, _, options = kind.partition(" ")
        right = controller in options.split(" ")[-1].split(",") if controller else filesystem == "cgroup2"
        if path is not None and filesystem.startswith("cgroup") and right:
            root, point = (_ESCAPED.sub(lambda found: chr(int(found[1], 8)), word) for word in place.split()[3:5])
            below = os.path.relpath(path, root)
            if not below.startswith(".."):
                folder, top = Path(point, below), Path(point)
                return [folder, *(parent for parent in folder.parents if parent.is_relative_to(top))]
    return []


def is_delegated(folder: Path) -> bool:
    """Return whether the group is delegated. Root may write to any group, so under systemd its mark is required."""
    if not os.access(folder, os.W_OK):
        return False
    if os.geteuid() != 0 or not SYSTEMD_FOLDER.is_dir():
        return True
    for group in (folder, *folder.parents):
        for name in _DELEGATED:
            with contextlib.suppress(OSError):
                if os.getxattr(group, name) == b"1":
                    return True
    return False


def _locked(folder: Path) -> int:
    """Return a locked descriptor of a folder; _NONE if the folder is already locked or does not exist."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return _NONE
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.stat(folder)  # noqa: PTH116 - it may have been removed before the lock
    except OSError:
        os.close(descriptor)
        return _NONE
    return descriptor


def _remove(folder: Path) -> None:
    """Remove a group and the groups of managers below it, if they contain no process."""
    with contextlib.suppress(OSError):
        for below in folder.glob(f"{_PREFIX}*"):
            _remove(below)
        folder.rmdir()
