"""Inherited: processes that a manager before this one launched, watched beside those of this one's launcher."""

from __future__ import annotations

import contextlib
import os
import select

from doorman.launcher import Event, Exited, Launcher, Order
from doorman.process import Process

__all__ = ["InheritingLauncher"]


class InheritingLauncher:
    """Launches as another launcher does, and tells the ends of processes that are nobody's children here.

    How such a process ended only its parent can know: its `Exited` says nothing but that it has.
    """

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._epoll = select.epoll()
        self._epoll.register(launcher.fileno(), select.EPOLLIN)
        self._inherited: dict[int, tuple[str, Process]] = {}

    def inherit(self, attempt: str, process: Process) -> None:
        """Tell of this process's end from now on. The handle stays the caller's."""
        own = Process(process.pid, os.dup(process.fileno()))
        self._inherited[own.fileno()] = attempt, own
        self._epoll.register(own, select.EPOLLIN)

    def launch(self, order: Order) -> None:
        """Ask the other launcher for a process. Raises LaunchRefused."""
        self._launcher.launch(order)

    def poll(self) -> list[Event]:
        """Return what has happened since the last call; never waits."""
        return [*self._launcher.poll(), *self._ends()]

    def fileno(self) -> int:
        """Return a descriptor that is readable whenever `poll` has something to return."""
        return self._epoll.fileno()

    def close(self, grace: float) -> None:
        """Close the other launcher, and let go of what was inherited."""
        self._launcher.close(grace)
        for _, process in self._inherited.values():
            process.close()
        self._inherited = {}
        with contextlib.suppress(ValueError):  # closed before
            self._epoll.close()

    def _ends(self) -> list[Event]:
        if not self._inherited:
            return []
        ended: list[Event] = []
        for descriptor, _ in self._epoll.poll(0):
            if descriptor in self._inherited:
                attempt, process = self._inherited.pop(descriptor)
                self._epoll.unregister(descriptor)
                process.close()
                ended.append(Exited(attempt, None, None))
        return ended
