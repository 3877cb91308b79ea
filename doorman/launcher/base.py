"""Reporting: what the launchers here do alike: hear many descriptors through one, and tell what has happened."""

from __future__ import annotations

import os
import select
import time
from typing import Final, Self

from doorman.launcher import Event
from doorman.process import check_system

__all__ = ["CLOSE_GRACE_S", "EpollLauncher"]


CLOSE_GRACE_S: Final = 5.0
"""Seconds that leaving a launcher's block waits for what it has launched to end."""


class EpollLauncher:
    """A launcher without anything to launch: the side of it that its owner polls. Belongs to one process.

    Raises PidfdUnavailable where processes cannot be held.
    """

    def __init__(self) -> None:
        check_system()
        self._owner = os.getpid()
        self._events: list[Event] = []
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = select.epoll()
        self._epoll.register(self._wakeup, select.EPOLLIN)
        self._closed = False

    def poll(self) -> list[Event]:
        """Return what has happened since the last call; never waits."""
        if not self._closed and self._owner == os.getpid():
            self._read_descriptors()
        events, self._events = self._events, []
        return events

    def fileno(self) -> int:
        """Return a descriptor that is readable whenever `poll` has something to return."""
        return self._epoll.fileno()

    def close(self, grace: float = CLOSE_GRACE_S) -> None:
        """End what was launched and is not detached, within about ``grace`` seconds. May be called twice.

        What ends now is no longer reported. In a fork of the owner it only lets go of the descriptors.
        """
        if self._closed:
            return
        self._closed = True
        self._close_processes(time.monotonic() + grace, ours=self._owner == os.getpid())
        self._epoll.close()
        os.close(self._wakeup)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- for the launcher itself -------------------------------------------------------------------------------

    def _check_usable(self) -> None:
        if self._closed:
            raise ValueError("this launcher is closed")
        if self._owner != os.getpid():
            raise ValueError("this launcher came with a fork and belongs to the parent: make a new one here")

    def _add_event(self, event: Event) -> None:
        """Have an event polled that no descriptor tells of."""
        self._events.append(event)
        os.eventfd_write(self._wakeup, 1)

    def _read_descriptors(self) -> None:
        """Take in what the descriptors say."""
        for descriptor, mask in self._epoll.poll(0):
            if descriptor == self._wakeup:
                os.eventfd_read(self._wakeup)
            else:
                self._handle(descriptor, mask)

    def _handle(self, descriptor: int, mask: int) -> None:
        """Take in what one descriptor says."""
        raise NotImplementedError

    def _close_processes(self, deadline: float, *, ours: bool) -> None:
        """End what was launched by the deadline; not if it is another process's."""
        raise NotImplementedError
