"""Chaos link: around one end of another transport: what becomes of each frame that is sent, as chance decides."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Final, NamedTuple

from remit.errors import TransportError
from remit.location import Location
from remit.transport import SERVER, Arrival, Down, Gap, Link, OwnedLink, Peer, Sent, Up, Wakeable
from remit.transports.faults import Dice, Fate, Faults
from remit.transports.heldback import HeldBack

__all__ = ["ChaosClientLink", "ChaosLink", "ChaosServerLink", "Reborn"]

OVERTAKEN: Final = 0.05
"""Seconds after which a frame leaves that was to be overtaken while nothing came to overtake it."""
CUT: Final = "cut by chaos"


class Reborn(NamedTuple):
    """What a server calls a peer whose connection was cut: the transport's own token, and how often by now."""

    peer: Peer
    times: int


class ChaosLink(OwnedLink):
    """A link around another one. ``role`` sets the decisions of a server apart from those of its clients."""

    def __init__(self, location: Location, link: Link, faults: Faults, role: str) -> None:
        super().__init__(location, replace(link.capabilities, lossy=True))
        self._link = link
        self._dice = Dice(faults, role)
        self._drawn: dict[Peer, Fate] = {}
        self._later = HeldBack()
        self._told: deque[Arrival] = deque()

    # -- the five verbs ----------------------------------------------------------------------------------------

    def send(self, peer: Peer, frame: bytes) -> Sent:
        """Offer one frame, and let chance decide what becomes of it. Never blocks. Raises FrameTooLarge."""
        self._enter(frame)
        self._release()
        inner = self._inner(peer)
        if inner is None:
            return Sent.GONE
        if self._later.full(inner):
            return Sent.FULL
        fate = self._drawn.pop(inner, None) or self._dice.throw()
        if fate.cut:
            return self._cut(inner)
        sent = self._pass(inner, frame, fate)
        if sent is Sent.FULL:
            # The same frame will come again: it keeps its fate, so that no decision depends on how full a wire is.
            self._drawn[inner] = fate
        return sent

    def receive(self) -> Arrival | None:
        """Return what arrived next, or None. Never blocks."""
        self._enter()
        self._release()
        return self._told.popleft() if self._told else self._named(self._link.receive())

    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        """Return after ``timeout`` seconds, or earlier: also when a frame that was held back may leave."""
        self._enter()
        self._release()
        if not self._told:
            self._link.wait(max(0.0, min(timeout, self._later.due - time.monotonic())), waker)
            self._release()

    def close(self, linger: float) -> None:
        """End within ``linger`` seconds; what was held back leaves now."""
        if self._ending():
            self._link.owner = self.owner
            self._hurry(time.monotonic() + linger)
        self._link.close(linger)

    # -- what becomes of a frame -------------------------------------------------------------------------------

    def _enter(self, frame: bytes = b"") -> None:
        self._check(frame)
        self._link.owner = self.owner

    def _pass(self, peer: Peer, frame: bytes, fate: Fate) -> Sent:
        if not fate.copies:
            return Sent.ACCEPTED
        due = time.monotonic() + fate.delay
        if fate.overtaken and self._later.let_pass(peer, bytes(frame), due + OVERTAKEN):
            return Sent.ACCEPTED
        sent = self._leave(peer, frame, due)
        if sent is not Sent.ACCEPTED:
            return sent
        if fate.copies > 1:
            self._leave(peer, frame, due)
        if self._later.overtake(peer, due):
            self._release()
        return sent

    def _leave(self, peer: Peer, frame: bytes, due: float) -> Sent:
        """Send a frame now, if it is time and nothing waits before it; else keep it."""
        if not self._later.keeps(peer) and due <= time.monotonic():
            return self._link.send(peer, frame)
        self._later.keep(peer, bytes(frame), due)
        return Sent.ACCEPTED

    def _release(self) -> None:
        """Send what was held back for long enough."""
        if self._later:
            self._later.release(time.monotonic(), self._link.send)

    def _hurry(self, deadline: float) -> None:
        """Let everything leave that is held back, as far as there is room by the deadline."""
        self._later.release_all(self._link.send)
        while self._later and (left := deadline - time.monotonic()) > 0:
            self._link.wait(left)
            self._later.release_all(self._link.send)

    # -- for the two ends --------------------------------------------------------------------------------------

    def _inner(self, peer: Peer) -> Peer | None:
        """Return the wrapped link's token of a peer; None when there is no such connection."""
        raise NotImplementedError

    def _named(self, arrival: Arrival | None) -> Arrival | None:
        """Return what the wrapped link received, with its peer as our owner knows it."""
        raise NotImplementedError

    def _cut(self, peer: Peer) -> Sent:
        """End a connection, of which the wrapped link knows nothing."""
        raise NotImplementedError

    def _forget(self, peer: Peer) -> None:
        """Drop what was meant for a connection that has ended."""
        self._later.forget(peer)
        self._drawn.pop(peer, None)


class ChaosClientLink(ChaosLink):
    """The client's end: a cut closes the wrapped link and opens another."""

    def __init__(self, location: Location, connect: Callable[[], Link], faults: Faults) -> None:
        super().__init__(location, connect(), faults, "client")
        self._connect = connect
        self._up = False

    def _inner(self, peer: Peer) -> Peer | None:
        return peer if self._up and not self._told else None

    def _named(self, arrival: Arrival | None) -> Arrival | None:
        if isinstance(arrival, Up):
            self._up = True
        elif isinstance(arrival, Down):
            self._up = False
            self._forget(SERVER)
        return arrival

    def _cut(self, peer: Peer) -> Sent:
        try:
            link = self._connect()
        except TransportError:
            return Sent.ACCEPTED  # nothing to go on with: only the frame is lost
        self._link.close(0.0)
        self._link, self._up = link, False
        self._forget(peer)
        self._told.append(Down(SERVER, CUT))
        return Sent.ACCEPTED


class ChaosServerLink(ChaosLink):
    """The server's end: a cut gives the peer, which learns nothing of it, another token."""

    def __init__(self, location: Location, link: Link, faults: Faults) -> None:
        super().__init__(location, link, faults, "server")
        self._ups: dict[Peer, Up] = {}
        self._reborn: dict[Peer, Reborn] = {}

    def _inner(self, peer: Peer) -> Peer | None:
        if isinstance(peer, Reborn):
            return peer.peer if self._reborn.get(peer.peer) == peer else None
        return None if peer in self._reborn else peer

    def _named(self, arrival: Arrival | None) -> Arrival | None:
        if arrival is None or isinstance(arrival, Gap):
            return arrival
        inner = arrival.peer
        if isinstance(arrival, Up):
            self._ups[inner] = arrival
        name = self._reborn.get(inner)
        if isinstance(arrival, Down):
            self._ups.pop(inner, None)
            self._reborn.pop(inner, None)
            self._forget(inner)
        return arrival if name is None else arrival._replace(peer=name)

    def _cut(self, peer: Peer) -> Sent:
        former = self._reborn.get(peer)
        self._reborn[peer] = reborn = Reborn(peer, former.times + 1 if former else 1)
        self._forget(peer)
        self._told.append(Down(former or peer, CUT))
        if peer in self._ups:
            self._told.append(self._ups[peer]._replace(peer=reborn))
        return Sent.ACCEPTED
