"""Wheel: who serves a client's link: a thread of its own, or for a while a caller that waits for an answer."""

from __future__ import annotations

import threading
import time
from typing import Final

from remit.transport import Waker

__all__ = ["PARK", "Wheel"]

PARK: Final = 0.002
"""Seconds for which the thread leaves the link alone after a caller has served it: the next request may be near."""
LONG: Final = 0.02
"""Seconds after which a caller is taken to serve for long: then the thread sleeps until it is told."""


class Wheel:
    """Held by whoever serves the link. The thread `take`s and `release`s it; a caller borrows it in between."""

    def __init__(self) -> None:
        self.waker = Waker()
        """What ends the sleep of whoever serves."""
        self._held = threading.Lock()
        self._borrowing = threading.Lock()
        self._news = threading.Condition()
        self._lent = self._parked = self._asleep = self._called = self._ended = False
        self._lent_at = self._rest_until = 0.0

    def call(self) -> None:
        """Have whoever serves look up, and the thread come back if nobody does. From any thread."""
        self.waker.wake()
        if self._parked and not self._lent:
            self._recall()

    # -- the thread --------------------------------------------------------------------------------------------

    def take(self) -> bool:
        """Wait until the link is the thread's to serve; False at the end."""
        while not self._ended:
            if self._lent or time.monotonic() < self._rest_until:
                self._park()
            self._held.acquire()
            if not self._lent:
                return True
            self._held.release()
        return False

    def release(self) -> None:
        """Let go, so that a caller may have it."""
        self._held.release()

    def _park(self) -> None:
        """Let others serve the link. Come back when none has for a moment, or when called."""
        with self._news:
            self._parked = True
            while not self._ended and (self._lent or self._resting()):
                self._asleep = self._lent and self._long()
                # Looked at once more: whoever gives it back first says so, and then looks who sleeps.
                self._news.wait(None if self._asleep and self._lent else PARK)
            self._parked = self._called = self._asleep = False

    def _resting(self) -> bool:
        return not self._called and time.monotonic() < self._rest_until

    def _long(self) -> bool:
        return time.monotonic() - self._lent_at > LONG

    # -- a caller ----------------------------------------------------------------------------------------------

    def borrow(self) -> bool:
        """Have the thread let go of the link; False if another caller has it. `give_back` it soon."""
        if not self._borrowing.acquire(blocking=False):
            return False
        self._lent_at = time.monotonic()
        self._lent = True
        if not self._parked:
            self.waker.wake()
        self._held.acquire()
        return True

    def give_back(self) -> None:
        """Serve the link no more. The thread waits for a moment whether another caller will, unless it is called."""
        self._rest_until = time.monotonic() + PARK
        self._lent = False
        asleep = self._asleep
        self._held.release()
        self._borrowing.release()
        if asleep:
            with self._news:
                self._news.notify()

    # -- ending ------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Have the thread, and a caller that serves, come to their end."""
        self._ended = True
        self.waker.wake()
        self._recall()

    def close(self) -> None:
        """Give the descriptors back, once nobody serves any more."""
        self.waker.close()

    def _recall(self) -> None:
        with self._news:
            self._called = True
            self._news.notify()
