"""Pairing: the one seat opposite a pair's owner: who has it, in which epoch, and when it is free again."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from remit._protocol.session import Session

__all__ = ["RECONNECT_GRACE_S", "ExclusiveSlot", "Leases"]


RECONNECT_GRACE_S: Final = 2.0
"""Seconds within which a worker whose connection was lost may come back and keep its jobs."""


class Leases:
    """The sessions of workers. Whatever is heard of one renews its lease; `lapsed` ends those that are over."""

    def __init__(self, seconds: float) -> None:
        self.lease_s = seconds
        """How long a worker may be silent."""
        self._away: dict[Session, float | None] = {}
        """Since when a worker has been without a connection; None while it has one."""

    def __contains__(self, session: Session) -> bool:
        return session in self._away

    def __len__(self) -> int:
        return len(self._away)

    def register(self, session: Session) -> None:
        """A worker announces itself."""
        self._away[session] = None

    def remove(self, session: Session) -> bool:
        """A worker is gone; False if there was none."""
        if session not in self._away:
            return False
        del self._away[session]
        return True

    def remove_expired(self, now: float) -> list[Session]:
        """End and return those that were silent for a lease, or whose connection has not come back in time."""
        return [session for session in list(self._away) if self._over(session, now) and self.remove(session)]

    def _over(self, session: Session, now: float) -> bool:
        if now - session.last_received_at > self.lease_s:
            return True
        if session.peer is not None:
            self._away[session] = None
            return False
        away = self._away[session]
        if away is None or session.last_received_at > away:  # It was here in between.
            self._away[session] = away = now
        return now - away > min(RECONNECT_GRACE_S, self.lease_s)


class ExclusiveSlot:
    """A seat for one. Each new holder begins an epoch: what says another one comes from somebody who lost the seat.

    Epochs count from ``first``: no other owner that the same guests may meet should ever have the same.
    """

    def __init__(self, *, lease: float, first: int = 0) -> None:
        self.epoch = first
        self.holder: Hashable | None = None
        self._lease = lease

    def claim(self, who: Hashable) -> int | None:
        """Take the seat and return its epoch; None if somebody else has it. Who has it may claim it again."""
        if self.holder is not None and self.holder is not who:
            return None
        if self.holder is None:
            self.holder = who
            self.epoch += 1
        return self.epoch

    def is_held_by(self, who: Hashable, epoch: int) -> bool:
        """Whether this is the holder speaking, in the present epoch."""
        return self.holder is not None and self.holder is who and epoch == self.epoch

    def release(self, who: Hashable) -> bool:
        """Let the holder go; False if it did not hold the seat."""
        if self.holder is None or self.holder is not who:
            return False
        self.holder = None
        return True

    def has_expired(self, silence: float) -> bool:
        """Whether a holder of whom nothing was heard for ``silence`` seconds has lost the seat."""
        return self.holder is not None and silence > self._lease
