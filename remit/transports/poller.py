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
        """Watch a waker as well, if there is one, until `unwatch`."""
        if waker is not None:
            with contextlib.suppress(FileExistsError):  # Ctrl-C may have come between the last two of these.
                self._poll.register(waker.fileno(), select.POLLIN)

    def unwatch(self, waker: Wakeable | None) -> None:
        """Watch it no more."""
        if waker is not None:
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
