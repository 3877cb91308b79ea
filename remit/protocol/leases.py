"""Leases: which workers are taken to be alive: heard of within their lease, and not without a connection for long."""

from __future__ import annotations

from typing import Final

from remit.protocol.session import Session

__all__ = ["RETURN", "Leases"]

RETURN: Final = 2.0
"""Seconds within which a worker whose connection was lost may come back and keep its jobs."""


class Leases:
    """The sessions of workers. Whatever is heard of one renews its lease; `lapsed` ends those that are over."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        """How long a worker may be silent."""
        self._away: dict[Session, float | None] = {}
        """Since when a worker has been without a connection; None while it has one."""

    def __contains__(self, session: Session) -> bool:
        return session in self._away

    def __len__(self) -> int:
        return len(self._away)

    def begin(self, session: Session) -> None:
        """A worker announces itself."""
        self._away[session] = None

    def end(self, session: Session) -> bool:
        """A worker is gone; False if there was none."""
        if session not in self._away:
            return False
        del self._away[session]
        return True

    def lapsed(self, now: float) -> list[Session]:
        """End and return those that were silent for a lease, or whose connection has not come back in time."""
        return [session for session in list(self._away) if self._over(session, now) and self.end(session)]

    def _over(self, session: Session, now: float) -> bool:
        if now - session.heard > self.seconds:
            return True
        if session.peer is not None:
            self._away[session] = None
            return False
        away = self._away[session]
        if away is None or session.heard > away:  # It was here in between.
            self._away[session] = away = now
        return now - away > min(RETURN, self.seconds)
