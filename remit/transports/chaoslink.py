"""Chaos link: around one end of another transport: what becomes of each frame that is sent, as chance decides."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from remit.errors import TransportError
from remit.location import Location
from remit.transport import SERVER, Arrival, Down, Gap, Link, OwnedLink, Peer, Sent, Up, Wakeable

__all__ = ["ChaosClientLink", "ChaosLink", "ChaosServerLink", "Faults", "Reborn"]

OVERTAKEN: Final = 0.05
"""Seconds after which a frame leaves that was to be overtaken while nothing came to overtake it."""
HELD: Final = 1024
"""Frames held back for one peer, beyond which a send is `Sent.FULL`."""
CUT: Final = "cut by chaos"


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What a location asks for. All but ``seed`` and ``delay`` are probabilities for each frame that is sent."""

    seed: int = 0
    loss: float = 0.0
    """The frame vanishes."""
    duplication: float = 0.0
    """It arrives twice."""
    reorder: float = 0.0
    """The next frame for the same peer overtakes it."""
    delay: float = 0.0
    """Seconds that it is held back at the most."""
    cut: float = 0.0
    """The connection ends, and the frame with it; another one begins."""


class Reborn(NamedTuple):
    """What a server calls a peer whose connection was cut: the transport's own token, and how often by now."""

    peer: Peer
    times: int


class _Fate(NamedTuple):
    cut: bool
    copies: int
    overtaken: bool
    delay: float


class ChaosLink(OwnedLink):
    """A link around another one. ``role`` sets the decisions of a server apart from those of its clients."""

    def __init__(self, location: Location, link: Link, faults: Faults, role: str) -> None:
        super().__init__(location, replace(link.capabilities, lossy=True))
        self._link = link
        self._faults = faults
        self._random = random.Random(f"{faults.seed} {role}")
        self._drawn: dict[Peer, _Fate] = {}
        self._held: dict[Peer, deque[tuple[float, bytes]]] = {}
        self._overtaken: dict[Peer, tuple[float, bytes]] = {}
        self._told: deque[Arrival] = deque()
        self._due = float("inf")

    # -- the five verbs ----------------------------------------------------------------------------------------

    def send(self, peer: Peer, frame: bytes) -> Sent:
        """Offer one frame, and let chance decide what becomes of it. Never blocks. Raises FrameTooLarge."""
        self._enter(frame)
        self._release()
        inner = self._inner(peer)
        if inner is None:
            return Sent.GONE
        if len(self._held.get(inner, ())) >= HELD:
            return Sent.FULL
        fate = self._drawn.pop(inner, None) or self._draw()
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
            self._link.wait(max(0.0, min(timeout, self._due - time.monotonic())), waker)
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

    def _draw(self) -> _Fate:
        """Decide. As many numbers are drawn for each frame, so that one option leaves the others' decisions alone."""
        faults = self._faults
        loss, twice, overtaken, cut, delay = (self._random.random() for _ in range(5))
        copies = 0 if loss < faults.loss else 2 if twice < faults.duplication else 1
        return _Fate(cut < faults.cut, copies, overtaken < faults.reorder, delay * faults.delay)

    def _pass(self, peer: Peer, frame: bytes, fate: _Fate) -> Sent:
        if not fate.copies:
            return Sent.ACCEPTED
        due = time.monotonic() + fate.delay
        if fate.overtaken and peer not in self._overtaken:
            self._overtaken[peer] = due + OVERTAKEN, bytes(frame)
            self._due = min(self._due, due + OVERTAKEN)
            return Sent.ACCEPTED
        sent = self._leave(peer, frame, due)
        if sent is not Sent.ACCEPTED:
            return sent
        if fate.copies > 1:
            self._leave(peer, frame, due)
        if peer in self._overtaken:
            self._keep(peer, self._overtaken.pop(peer)[1], due)
            self._release()
        return sent

    def _leave(self, peer: Peer, frame: bytes, due: float) -> Sent:
        """Send a frame now, if it is time and nothing waits before it; else keep it."""
        if peer not in self._held and due <= time.monotonic():
            return self._link.send(peer, frame)
        self._keep(peer, bytes(frame), due)
        return Sent.ACCEPTED

    def _keep(self, peer: Peer, frame: bytes, due: float) -> None:
        held = self._held.setdefault(peer, deque())
        held.append((max(due, held[-1][0]) if held else due, frame))
        self._due = min(self._due, held[0][0])

    def _release(self) -> None:
        """Send what was held back for long enough; note when the next is due."""
        if not self._held and not self._overtaken:
            return
        now = time.monotonic()
        for peer, (due, frame) in list(self._overtaken.items()):
            if due <= now:
                del self._overtaken[peer]
                self._keep(peer, frame, due)
        self._due = min((due for due, _ in self._overtaken.values()), default=float("inf"))
        for peer, held in list(self._held.items()):
            while held and held[0][0] <= now:
                if self._link.send(peer, held[0][1]) is Sent.FULL:
                    break  # the wait below us returns when there is room
                held.popleft()
            if not held:
                del self._held[peer]
            elif held[0][0] > now:
                self._due = min(self._due, held[0][0])

    def _hurry(self, deadline: float) -> None:
        """Let everything leave that is held back, as far as there is room by the deadline."""
        for peer, (_, frame) in self._overtaken.items():
            self._keep(peer, frame, 0.0)
        self._overtaken.clear()
        for peer, held in self._held.items():
            while held:
                if self._link.send(peer, held[0][1]) is not Sent.FULL:
                    held.popleft()
                elif (left := deadline - time.monotonic()) > 0:
                    self._link.wait(left)
                else:
                    break

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
        self._held.pop(peer, None)
        self._overtaken.pop(peer, None)
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
