"""Mutants whose `receive` blocks, or whose `wait` does not end when it must."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from mutants.making import (
    Sound,
    hanging,
    mutant,
    released,
)
from remit.transport import (
    Arrival,
    Wakeable,
)


@hanging("receive_does_not_block")
class BlocksInReceive(Sound):
    def receive(self) -> Arrival | None:
        while not self.inbox and len(self._routes) > 0 and not released.wait(0.01):
            pass
        return super().receive()


@mutant("receive_does_not_block", "receive without a queued arrival blocks")
class DawdlesInReceive(Sound):
    def receive(self) -> Arrival | None:
        if not self.inbox and self._routes:
            self.wait(0.06)
        return super().receive()


@hanging("wait_ends_by_itself")
class WaitsForEver(Sound):
    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        while not self.inbox and self._routes and not released.wait(0.01):
            pass
        super().wait(0.0, waker)


@hanging("a_waker_ends_a_wait")
class IgnoresWakers(Sound):
    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        super().wait(timeout)


@hanging("a_waker_ends_a_wait")
class ClearsWakers(Sound):
    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        super().wait(timeout, waker)
        if waker is not None:
            os.set_blocking(waker.fileno(), False)
            try:
                os.read(waker.fileno(), 100)
            except BlockingIOError:
                return


@hanging("wait_is_level_triggered")
class WaitsForWhatIsNew(Sound):
    news = False

    def enqueue(self, arrival: Arrival, route: Any = None) -> None:
        self.news = True
        super().enqueue(arrival, route)

    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        deadline = time.monotonic() + timeout
        while not self.news and time.monotonic() < deadline and not released.wait(0.001):
            pass
        self.news = False
        super().wait(0.0, waker)


@hanging("a_frame_ends_a_wait")
class SleepsThroughFrames(Sound):
    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        self._check()
        if not self.inbox:
            released.wait(timeout)


@mutant("no_user_code_on_another_thread", "from another thread")
class AsksOnAnotherThread(Sound):
    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        if waker is not None:
            asking = threading.Thread(target=waker.fileno)
            asking.start()
            asking.join()
        super().wait(timeout, waker)
