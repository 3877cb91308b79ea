"""Base class of the launchers: one epoll for all descriptors, and a queue of events."""

from __future__ import annotations

import errno
import itertools
import os
import select
import sys
import time
from collections import deque
from typing import Final, Self

from doorman.errors import LaunchRefused
from doorman.launcher import Event, LaunchFailed, Order
from doorman.launcher.launch_messages import OUT_OF_RESOURCES, interpreter_flags
from doorman.process import check_system

CLOSE_GRACE_S: Final = 5.0
"""Default time within which the launched processes must end when a launcher is closed."""


def python_command() -> list[str]:
    """Return this interpreter with the flags of this process. Raises FileNotFoundError without a `sys.executable`."""
    if not sys.executable:
        reason = f"sys.executable is {sys.executable!r}; set it to the path of a Python interpreter"
        raise FileNotFoundError(errno.ENOENT, reason)
    return [sys.executable, *interpreter_flags()]


class EpollLauncher:
    """Implements the polling part of the launcher contract. Belongs to one process.

    Raises PidfdUnavailable on a system without pidfds.
    """

    def __init__(self) -> None:
        check_system()
        self._owner = os.getpid()
        self._events: deque[Event] = deque()
        # Makes `fileno` readable for events that come from no descriptor, such as a launch that failed.
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = select.epoll()
        self._epoll.register(self._wakeup, select.EPOLLIN)
        self._closed = self._released = False

    def poll(self) -> list[Event]:
        """Return the events since the last call; never waits."""
        try:
            for descriptor, mask in () if self._closed or self._owner != os.getpid() else self._epoll.poll(0):
                if descriptor == self._wakeup:
                    os.eventfd_read(self._wakeup)
                else:
                    self._handle(descriptor, mask)
            # In the line of the return: an interrupt before it or after it loses no event.
            return [*map(deque.popleft, itertools.repeat(self._events, len(self._events)))]
        except BaseException:
            os.eventfd_write(self._wakeup, 1)  # A launcher around this one polls it again only if it is readable.
            raise

    def fileno(self) -> int:
        """Return a descriptor that is readable whenever `poll` has something to return."""
        return self._epoll.fileno()

    def close(self, grace: float = CLOSE_GRACE_S) -> None:
        """Stop the launched processes that are not detached, within about ``grace`` seconds. Closing twice is fine.

        The end of a process is no longer reported. In a fork of the owner, `close` only closes the descriptors.
        """
        if self._released:
            return
        # A call that was interrupted is completed by the next one.
        self._closed = True
        self._close_processes(time.monotonic() + grace, ours=self._owner == os.getpid())
        self._epoll.close()
        self._released = True
        os.close(self._wakeup)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_usable(self) -> None:
        if self._closed:
            raise ValueError("this launcher is closed")
        if self._owner != os.getpid():
            raise ValueError("this launcher belongs to the parent of this fork: create another one here")

    def _may_enter(self, order: Order) -> bool:
        """Return whether the working directory of an order can be used; if not, fail the attempt."""
        # Not pathlib: once per task.
        if order.cwd is None or (os.path.isdir(order.cwd) and os.access(order.cwd, os.X_OK)):  # noqa: PTH112
            return True
        reason = "may not be entered" if os.path.isdir(order.cwd) else "does not exist"  # noqa: PTH112
        self._add_event(LaunchFailed(order.attempt, f"its working directory {reason}: {order.cwd}"))
        return False

    def _start_failed(self, attempt: str, program: str, error: OSError) -> None:
        """Handle an error of a start: raise LaunchRefused if it passes by waiting, else fail the attempt."""
        if error.errno in OUT_OF_RESOURCES:
            raise LaunchRefused(f"no process can be started now: {error.strerror}") from error
        self._add_event(LaunchFailed(attempt, f"cannot start {program}: {error.strerror or error}"))

    def _add_event(self, event: Event) -> None:
        """Queue an event that no descriptor announces."""
        self._events.append(event)
        os.eventfd_write(self._wakeup, 1)

    def _handle(self, descriptor: int, mask: int) -> None:
        """Handle a descriptor that is ready."""
        raise NotImplementedError

    def _close_processes(self, deadline: float, *, ours: bool) -> None:
        """Stop the processes by the deadline; in a fork of the owner (not ``ours``), only close the descriptors.

        After an interrupt it is called again.
        """
        raise NotImplementedError
