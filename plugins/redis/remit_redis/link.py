"""Link: what both ends on Redis share: the verbs, and coming back after a connection was lost."""

from __future__ import annotations

import math
import select
from collections import deque
from time import monotonic
from typing import Any, Final

from remit.errors import TransportError
from remit.location import Location
from remit.transport import Arrival, Capabilities, Down, OwnedLink, Peer, Sent, Wakeable
from remit_redis.channel_names import Names, Route
from remit_redis.connect import Address, Dialling, Refused
from remit_redis.resp_connection import Denied, Lost, Wire

__all__ = ["RedisLink"]

SOON: Final = 0.01
"""Seconds from a lost connection to the first attempt to come back; each further wait is twice as long..."""
LATE: Final = 0.25
"""... up to this many seconds."""
HELD: Final = 64
"""Arrivals that may wait to be received while `send` reads more to see its answers."""
FAREWELL: Final = 0.05
"""Seconds for which `close` waits for Redis to hear the farewell even if its linger is shorter."""


class RedisLink(OwnedLink):
    """One end: a connection to Redis that is replaced when it is lost."""

    def __init__(self, location: Location, capabilities: Capabilities, address: Address, names: Names) -> None:
        super().__init__(location, capabilities)
        self.dropped = 0
        """Messages that were no frames of a peer."""
        self._names = names
        self._address = address
        self._arrivals: deque[Arrival] = deque()
        self._wire: Wire | None = None
        self._dialling: Dialling | None = None
        self._dial_at = 0.0
        self._pause = SOON
        self._beat_at = math.inf
        self._wanted: int | None = None
        self._settled = False
        self._trouble: TransportError | None = None
        self._failure: TransportError | None = None

    # -- what the two ends add ---------------------------------------------------------------------------------

    period: float
    """Seconds between two beats."""

    def _opened(self, wire: Wire) -> None:
        """A new connection is there: subscribe and introduce yourself."""
        raise NotImplementedError

    def _lost(self, why: str) -> None:
        """The connection is gone: nobody can be reached."""
        raise NotImplementedError

    def _heard(self, channel: bytes, data: bytes) -> None:
        raise NotImplementedError

    def _beat(self, wire: Wire) -> None:
        """Do what must be done every `period` seconds."""
        raise NotImplementedError

    def _farewell(self, wire: Wire) -> None:
        raise NotImplementedError

    def _route(self, peer: Peer) -> Route | None:
        """Return the way to a reachable peer, else None."""
        raise NotImplementedError

    def _published(self, route: Route, readers: int) -> None:
        """Redis has passed a frame on to so many readers."""
        raise NotImplementedError

    # -- the verbs ---------------------------------------------------------------------------------------------

    def send(self, peer: Peer, frame: bytes) -> Sent:
        """Offer one frame. Never blocks. Raises FrameTooLarge."""
        self._check(frame)
        try:
            if monotonic() >= self._beat_at:
                self._tend()
            full = not self._has_room(len(frame))
            route = self._route(peer)
            if self._wire is None or route is None:
                return Sent.GONE
            if full:
                return Sent.FULL
            self._wire.ask(self._published, route, b"PUBLISH", route[0], route[1] + frame)
        except Lost as lost:
            self._disconnected(lost)
            return Sent.GONE
        return Sent.ACCEPTED

    def receive(self) -> Arrival | None:
        """Return what arrived next, or None. Raises LocationInUse if another server took the location over."""
        self._check()
        if not self._arrivals:
            self._tend()
            if not self._arrivals:
                if self._failure is not None:
                    raise self._failure
                return None
        return self._arrivals.popleft()

    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        """Return after ``timeout`` seconds or when there is something to do."""
        self._check()
        deadline = monotonic() + timeout
        while not self._arrivals:
            self._tend()
            remaining = deadline - monotonic()
            if self._arrivals or self._failure or self._relieved() or remaining <= 0:
                return
            if self._sleep(remaining, waker):
                return

    def close(self, linger: float) -> None:
        """Say farewell and end within ``linger`` seconds."""
        if not self._ending():
            return
        if self._dialling is not None:
            self._dialling.abandon()
            self._dialling = None
        wire, self._wire = self._wire, None
        if wire is not None:
            try:
                self._farewell(wire)
                wire.drain(max(linger, FAREWELL))
            except Lost:
                pass  # so is the farewell: the others will notice by themselves
            finally:
                wire.close()

    def after_fork(self) -> None:
        """Give the child's copies of the descriptors back, without a word to Redis."""
        super().after_fork()
        if self._wire is not None:
            self._wire.forked()
        if self._dialling is not None:
            self._dialling.forked()

    # -- inside ------------------------------------------------------------------------------------------------

    def _tend(self) -> None:
        """Take in what has come, and do what time demands."""
        wire = self._wire
        if wire is None:
            self._reconnect()
            return
        try:
            wire.tend()
            now = monotonic()
            if now >= self._beat_at:
                self._beat_at = now + self.period
                wire.check(now)
                self._beat(wire)
        except Lost as lost:
            self._disconnected(lost)

    def _has_room(self, size: int) -> bool:
        wire = self._wire
        if wire is None or wire.room(size):
            return True
        if len(self._arrivals) < HELD:
            wire.tend()
        self._wanted = None if wire.room(size) else size
        return self._wanted is None

    def _relieved(self) -> bool:
        if self._wanted is None or (self._wire is not None and not self._wire.room(self._wanted)):
            return False
        self._wanted = None
        return True

    def _sleep(self, seconds: float, waker: Wakeable | None = None) -> bool:
        """Wait until Redis says something or something is due; True if it was the waker."""
        poll, own = select.poll(), self._wire or self._dialling
        if self._wire is not None:
            poll.register(self._wire, self._wire.events)
        elif own is not None:
            poll.register(own, select.POLLIN)
        if waker is not None:
            poll.register(waker, select.POLLIN)
        due = math.inf if self._dialling else self._beat_at if self._wire else self._dial_at
        ready = poll.poll(max(0.0, min(seconds, due - monotonic())) * 1000)
        return waker is not None and any(descriptor == waker.fileno() for descriptor, _ in ready)

    def _reconnect(self) -> None:
        if self._failure is not None:
            return
        if self._dialling is None:
            if monotonic() >= self._dial_at:
                self._dial()
            return
        try:
            connection = self._dialling.result()
        except TransportError as error:
            self._dialling = None
            self._trouble = error
            self._later()
            return
        if connection is None:
            return
        self._dialling = None
        self._wire = wire = Wire(connection, self._heard)
        self._beat_at = monotonic() + self.period
        try:
            self._opened(wire)
        except Lost as lost:
            self._disconnected(lost)

    def _dial(self) -> None:
        try:
            self._dialling = Dialling(self._address)
        except OSError as error:  # No descriptor is left now; one may be later.
            self._trouble = TransportError(f"cannot connect to redis at {self._address.where}: {error.strerror}")
            self._later()

    def _disconnected(self, lost: Lost) -> None:
        if self._wire is not None:
            self._wire.close()
        self._wire = None
        self._beat_at = math.inf
        kind = Refused if isinstance(lost, Denied) else TransportError
        hint = "; the README of remit-redis lists what a user must be allowed" if "NOPERM" in str(lost) else ""
        self._trouble = kind(f"{lost} (at {self._address.where}){hint}")
        self._later()
        self._lost(str(lost))

    def _later(self) -> None:
        self._dial_at = monotonic() + self._pause
        self._pause = min(2 * self._pause, LATE)

    def _settle(self) -> None:
        """Redis has answered as it should: the next loss begins with a short pause again."""
        self._settled = True
        self._trouble = None
        self._pause = SOON

    def _down(self, peer: Peer, why: str) -> None:
        self._arrivals.append(Down(peer, why))

    def _ignore(self, _about: Any, _answer: Any) -> None:
        """An answer that says nothing new."""
