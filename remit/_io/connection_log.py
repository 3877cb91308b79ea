"""Log of one connection: records of its loss, its refusal and its return, at a bounded rate."""

from __future__ import annotations

import logging
from typing import Final

from remit.transport import Link

logger = logging.getLogger("remit")

GRACE_S: Final = 1.0
"""Time without a connection before it is reported."""
INTERVAL_S: Final = 60.0
"""Seconds after a report until the loss of a later connection is reported."""
MAX_REASONS: Final = 8
"""Reasons that are reported while there is no connection."""
FOREVER: Final = float("inf")


class ConnectionLog:
    """Reports that a link is lost, why it is not connected, and that it is back. Call `update` at `due`."""

    def __init__(self, link: Link, now: float) -> None:
        self.due = now + GRACE_S
        self._link = link
        self.connected = False
        self._lost = False
        self._reported_at = -FOREVER
        self._reasons: set[str] = set()
        """Reasons that were reported since the last connection."""

    def update(self, why: str, now: float) -> None:
        """Note why there is no connection; empty if there is one."""
        if not why:
            self._on_connected()
        elif self.connected:
            self.connected, self._lost = False, True
            # A client that is about to close, or a server that restarts, is not reported.
            self.due = max(now + GRACE_S, self._reported_at + INTERVAL_S)
        elif now >= self.due:
            self.due = now + GRACE_S
            if why not in self._reasons and len(self._reasons) < MAX_REASONS:
                what = "lost the" if self._lost and not self._reasons else "no"
                self._reasons.add(why)
                self._reported_at = now
                logger.warning("%s connection to %s: %s", what, self._link.location, why)

    def _on_connected(self) -> None:
        self.due = FOREVER
        if not self.connected:
            self.connected = True
            if self._reasons:
                logger.info("connected to %s again", self._link.location)
                self._reasons.clear()
