"""Poller: the question a link puts to the kernel: which descriptors can be read or written now."""

from __future__ import annotations

import contextlib
import select
from typing import Final, Protocol

from remit.transport import Wakeable

__all__ = ["Poller"]

EVENTS: Final = 64
"""Descriptors told at a time, so that what is read from them at once has a bound; the others are told next."""


class _Watched(Protocol):
    def fileno(self) -> int: ...


class Poller:
    """Level-triggered, by epoll where there is one, so that an idle look costs the same for 1 and 1000 descriptors.

    Events are those of `select.poll`; timeouts are seconds.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        self._poll = self._epoll or select.poll()
        self._waker: Wakeable | None = None

    def register(self, watched: _Watched, events: int) -> None:
        """Begin to watch."""
        self._poll.register(watched.fileno(), events)

    def modify(self, watched: _Watched, events: int) -> None:
        """Watch for other events from now on."""
        self._poll.modify(watched.fileno(), events)

    def unregister(self, watched: _Watched) -> None:
        """Watch no more. Before the descriptor is closed."""
        self._poll.unregister(watched.fileno())

    def watch(self, waker: Wakeable | None) -> None:
        """Watch a waker as well, if there is one, and no other, until `unwatch`."""
        if waker is self._waker:
            return
        self._release()
        if waker is not None:
            with contextlib.suppress(FileExistsError):  # Ctrl-C may have come between this and the next line.
                self._poll.register(waker.fileno(), select.POLLIN)
            self._waker = waker

    def unwatch(self) -> None:
        """The wait is over. An epoll keeps the waker for the next: to ask the kernel twice for each wait is dear."""
        if self._epoll is None:
            self._release()

    def _release(self) -> None:
        waker, self._waker = self._waker, None
        if waker is not None and waker.fileno() >= 0:  # A closed one is forgotten by the kernel.
            with contextlib.suppress(FileNotFoundError, KeyError):
                self._poll.unregister(waker.fileno())

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        """Return the descriptors for which something can be done, and what, waiting up to ``timeout`` seconds."""
        if self._epoll is not None:
            return self._epoll.poll(timeout, EVENTS)
        return self._poll.poll(timeout * 1000)

    def close(self) -> None:
        """Give the epoll's descriptor back. May be called twice."""
        if self._epoll is not None:
            self._epoll.close()
