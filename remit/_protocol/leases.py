"""Leases of workers, renewed by each received frame."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from remit._protocol.session import Session

RECONNECT_GRACE_S: Final = 2.0
"""Seconds within which a disconnected worker may reconnect and keep its jobs."""
STALL_S: Final = 1.0
"""Least time between two checks of the leases, in seconds, that is considered a stall of this process."""


class Leases:
    """Sessions of workers. Each received frame renews a lease; `remove_expired` removes sessions without one."""

    def __init__(self, lease_s: float, is_alive: Callable[[Session], bool] = lambda _: False) -> None:
        self.lease_s = lease_s
        """Seconds of silence after which a worker is considered dead."""
        self._is_alive = is_alive
        """Whether a silent, connected worker is known to run: the kernel attests its process."""
        self._checked_at = float("inf")
        self._stalled = False
        self._renewed_at = float("-inf")
        """Time at which all leases were renewed."""
        self._disconnected_at: dict[Session, float | None] = {}
        """Time at which each worker was first seen without a connection; None while it is connected."""

    def __len__(self) -> int:
        return len(self._disconnected_at)

    def __contains__(self, session: Session) -> bool:
        return session in self._disconnected_at

    def register(self, session: Session) -> None:
        """Start the lease of a worker."""
        self._disconnected_at[session] = None

    def remove(self, session: Session) -> bool:
        """Remove a worker. Return False if it was not registered."""
        if session not in self._disconnected_at:
            return False
        del self._disconnected_at[session]
        return True

    def remove_expired(self, now: float) -> list[Session]:
        """Remove and return the workers that were silent for a lease or did not reconnect in time."""
        # This process did not run, or did not read, for a large part of a lease: a thread of it held the GIL, it was
        # stopped, or its host was suspended. Workers in it had no more time than it had.
        stalled = now - self._checked_at > max(STALL_S, self.lease_s / 2)
        if stalled and not self._stalled:  # Not twice in a row: that is a broker that is ticked rarely.
            self._renewed_at = now
        self._checked_at, self._stalled = now, stalled
        expired = [session for session in self._disconnected_at if self._expired(session, now)]
        return [session for session in expired if self.remove(session)]

    def _expired(self, session: Session, now: float) -> bool:
        if now - max(session.last_received_at, self._renewed_at) > self.lease_s:
            return session.peer is None or not self._is_alive(session)
        if session.peer is not None:
            self._disconnected_at[session] = None
            return False
        since = self._disconnected_at[session]
        # A frame that is newer than the last disconnect seen proves a reconnect in between: the grace period restarts.
        if since is None or session.last_received_at > since:
            self._disconnected_at[session] = since = now
        return now - since > min(RECONNECT_GRACE_S, self.lease_s)
