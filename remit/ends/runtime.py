"""Runtime: an open client: its line, who drives it, and how it is drained and closed."""

from __future__ import annotations

import time
from typing import Any, Final

from remit.codec import Codec
from remit.ends.driving import ByCaller, ByThread, Driver
from remit.ends.inbound import Dispatch
from remit.ends.line import Line
from remit.errors import Undelivered
from remit.location import Location
from remit.patterns.waiters import Pose
from remit.settings import Settings
from remit.transport import Transport

__all__ = ["Runtime"]

JOIN: Final = 2.0
"""Seconds that a closing client waits for its own threads beyond the linger."""

_ABANDONED: list[Runtime] = []
"""What a forked child inherited: kept for ever, since to collect it could touch what the parent owns."""


class Runtime:
    """An open client. `gate` is what ``emit`` sees of it."""

    def __init__(
        self,
        transport: Transport,
        location: Location,
        settings: Settings,
        *,
        codec: Codec | None,
        threaded: bool,
        dispatch: Dispatch,
    ) -> None:
        line = Line(transport, location, settings, codec=codec, dispatch=dispatch, wake=self.wake)
        self._line = line
        self._by_thread = ByThread(line)
        self._driver: Driver = self._by_thread if threaded else ByCaller(line)
        if not threaded:
            line.gate.drive = line.drive
        self.gate = line.gate
        self.asking = line.asking
        self.urgent = line.inbound.urgent

    @property
    def connected(self) -> bool:
        """Whether a server has welcomed this client on the present connection."""
        return self._line.connected

    @property
    def silence(self) -> float:
        """Seconds since the server was last heard."""
        return time.monotonic() - self._line.machine.session.heard

    def stats(self) -> dict[str, int]:
        """Return counters of the queue, the window and the connection."""
        return self._line.stats()

    # -- driving -----------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Have what waits in the gate looked at soon. Raises SessionRefused."""
        self._line.check()
        if self.gate.idle:
            self._driver.wake()

    def start(self) -> None:
        """Give the link to a thread from now on."""
        self._driver = self._by_thread
        self._by_thread.start()

    def tick(self, timeout: float) -> int:
        """Pump once, after waiting up to ``timeout`` seconds if nothing is there; dispatch; return how many."""
        if self._by_thread.at_work:
            return 0
        line = self._line
        line.pump()
        if not len(line.inbound) and timeout > 0:
            line.drive(timeout)
        count = line.inbound.hand_over()
        if count:
            line.pump()
        return count

    def request(self, pose: Pose) -> Any:
        """Ask, wait for the answer and return it, or raise what became of it. Its deadline ends the wait."""
        return self._driver.request(pose)

    def answers_within(self, seconds: float) -> None:
        """Let an acknowledgement wait so long for an event to leave with."""
        self._line.machine.session.ack_delay = seconds

    def beat(self, seconds: float) -> None:
        """Ask after this many seconds of silence whether the server is there."""
        self._line.machine.beat(seconds)  # Two numbers: no lock, which whoever waits for the link holds.
        self._line.wheel.call()

    # -- ending ------------------------------------------------------------------------------------------------

    def drain(self, timeout: float, *, quiet: bool = False) -> bool:
        """Wait until nothing is under way; False after ``timeout`` seconds, or if something can never leave.

        Raises SessionRefused unless quiet.
        """
        line, deadline = self._line, time.monotonic() + timeout
        while not line.outbox.empty:
            if line.machine.refusal is not None:
                if not quiet:
                    line.check()
                return False
            left = deadline - time.monotonic()
            if left <= 0 or line.closing or (quiet and self._by_thread.at_work and line.in_callback):
                return False
            self._driver.progress(left)
        return not line.outbox.oversized

    def close(self, linger: float) -> Undelivered | None:
        """End the threads and the link; return what was not confirmed, as an error to raise."""
        self._line.closing = self.gate.closed = True
        self.gate.opened()
        self._by_thread.end(JOIN)
        self._line.hang_up(linger)
        return self._line.undelivered()

    def abandon(self) -> None:
        """In a forked child: keep what was inherited, and never touch it."""
        _ABANDONED.append(self)
