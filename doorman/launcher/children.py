"""Children: what a zygote keeps of each process that it has to reap, and how it ends them."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from typing import NamedTuple

__all__ = ["Child", "own_children"]

_SIGNAL_PROCESS_GROUP = 1 << 2  # PIDFD_SIGNAL_PROCESS_GROUP, Linux 6.9


class Child(NamedTuple):
    """A child that has not been reaped: until then its number is its own."""

    attempt: str | None  # None: an orphan of a task that has ended
    pid: int
    pidfd: int
    detach: bool
    record: str | None = None

    def kill(self) -> None:
        """Kill it and its process group."""
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL, None, _SIGNAL_PROCESS_GROUP)
        except OSError as error:
            if error.errno == errno.EINVAL:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)
            # An orphan leads no group; a program may be another user's by now.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)


def own_children() -> set[int]:
    """Return the numbers of this process's children, orphans that came to it included."""
    try:
        with open("/proc/thread-self/children", "rb", buffering=0) as file:  # noqa: PTH123 - once per child
            return {int(pid) for pid in (file.read(1 << 20) or b"").split()}
    except FileNotFoundError:  # A kernel built without it.
        return set()
