"""Chaos: around any other transport: it loses, repeats, delays, reorders and cuts, so that you can test what you built.

``chaos+unix:///tmp/a.sock?seed=7&loss=0.2&duplication=0.1`` is ``unix:///tmp/a.sock`` on a bad day. Each end spoils
what it sends itself, so give the location to both. The same seed and the same calls give the same decisions.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from remit.errors import TransportError
from remit.location import Location, read_seconds
from remit.transport import SERVER, Arrival, Down, Gap, Link, OwnedLink, Peer, Sent, Transport, Up, Wakeable

__all__ = [
    "ChaosClientLink",
    "ChaosLink",
    "ChaosServerLink",
    "ChaosTransport",
    "DelayQueue",
    "FaultGenerator",
    "Faults",
    "FrameFaults",
    "ReconnectedPeer",
]


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


class FrameFaults(NamedTuple):
    """What is to become of one frame."""

    cut: bool
    copies: int
    reordered: bool
    delay: float


class FaultGenerator:
    """Decides as ``faults`` say. ``role`` sets the decisions of a server apart from those of its clients."""

    def __init__(self, faults: Faults, role: str) -> None:
        self._faults = faults
        self._random = random.Random(f"{faults.seed} {role}")

    def draw(self) -> FrameFaults:
        """Decide. As many numbers are drawn for each frame, so that one option leaves the others' decisions alone."""
        faults = self._faults
        loss, twice, overtaken, cut, delay = (self._random.random() for _ in range(5))
        copies = 0 if loss < faults.loss else 2 if twice < faults.duplication else 1
        return FrameFaults(cut < faults.cut, copies, overtaken < faults.reorder, delay * faults.delay)


MAX_DELAYED: Final = 1024
"""Frames held back for one peer, beyond which a send is `Sent.FULL`."""
NEVER: Final = float("inf")


class DelayQueue:
    """Keeps frames in the order in which they leave. It is told the time, in monotonic seconds, and never asks."""

    def __init__(self) -> None:
        self.next_due = NEVER
        """When the next one may leave; those for which there was no room are not counted."""
        self._delayed: dict[Peer, deque[tuple[float, bytes]]] = {}
        self._reordered: dict[Peer, tuple[float, bytes]] = {}

    def __bool__(self) -> bool:
        return bool(self._delayed or self._reordered)

    def is_full(self, peer: Peer) -> bool:
        """Whether no more can be kept for a peer."""
        return len(self._delayed.get(peer, ())) >= MAX_DELAYED

    def has_pending(self, peer: Peer) -> bool:
        """Whether something leaves before what is sent to a peer now."""
        return peer in self._delayed

    def push(self, peer: Peer, frame: bytes, due: float) -> None:
        """Keep a frame until it is due, and what is before it has left."""
        held = self._delayed.setdefault(peer, deque())
        held.append((max(due, held[-1][0]) if held else due, frame))
        self.next_due = min(self.next_due, held[0][0])

    def push_reordered(self, peer: Peer, frame: bytes, due: float) -> bool:
        """Keep a frame until the next one has left, or it is due; False: another one waits for that already."""
        if peer in self._reordered:
            return False
        self._reordered[peer] = due, frame
        self.next_due = min(self.next_due, due)
        return True

    def schedule_reordered(self, peer: Peer, due: float) -> bool:
        """One has left, or will at that time: what let it pass comes next. False if nothing did."""
        if peer not in self._reordered:
            return False
        self.push(peer, self._reordered.pop(peer)[1], due)
        return True

    def send_due(self, now: float, send: Callable[[Peer, bytes], Sent]) -> None:
        """Send what is due, as far as there is room; note when the next is."""
        if not self:
            return
        for peer, (due, frame) in list(self._reordered.items()):
            if due <= now:
                del self._reordered[peer]
                self.push(peer, frame, due)
        self.next_due = min((due for due, _ in self._reordered.values()), default=NEVER)
        for peer, held in list(self._delayed.items()):
            while held and held[0][0] <= now:
                if send(peer, held[0][1]) is Sent.FULL:
                    break  # the link's wait returns when there is room
                held.popleft()
            if not held:
                del self._delayed[peer]
            elif held[0][0] > now:
                self.next_due = min(self.next_due, held[0][0])

    def send_all(self, send: Callable[[Peer, bytes], Sent]) -> None:
        """Send everything, as far as there is room."""
        self.send_due(NEVER, send)

    def discard_peer(self, peer: Peer) -> None:
        """Drop what was meant for a connection that has ended."""
        self._delayed.pop(peer, None)
        self._reordered.pop(peer, None)


REORDER_TIMEOUT_S: Final = 0.05
"""Seconds after which a frame leaves that was to be overtaken while nothing came to overtake it."""
CUT_REASON: Final = "cut by chaos"


class ReconnectedPeer(NamedTuple):
    """What a server calls a peer whose connection was cut: the transport's own token, and how often by now."""

    peer: Peer
    reconnects: int


class ChaosLink(OwnedLink):
    """A link around another one. ``role`` sets the decisions of a server apart from those of its clients."""

    def __init__(self, location: Location, link: Link, faults: Faults, role: str) -> None:
        super().__init__(location, replace(link.capabilities, lossy=True))
        self._link = link
        self._generator = FaultGenerator(faults, role)
        self._pending_faults: dict[Peer, FrameFaults] = {}
        self._delayed = DelayQueue()
        self._arrivals: deque[Arrival] = deque()

    # -- the five verbs ----------------------------------------------------------------------------------------

    def send(self, peer: Peer, frame: bytes) -> Sent:
        """Offer one frame, and let chance decide what becomes of it. Never blocks. Raises FrameTooLarge."""
        self._check_and_share_owner(frame)
        self._send_due()
        inner = self._inner_peer(peer)
        if inner is None:
            return Sent.GONE
        if self._delayed.is_full(inner):
            return Sent.FULL
        fate = self._pending_faults.pop(inner, None) or self._generator.draw()
        if fate.cut:
            return self._cut(inner)
        sent = self._apply(inner, frame, fate)
        if sent is Sent.FULL:
            # The same frame will come again: it keeps its fate, so that no decision depends on how full a wire is.
            self._pending_faults[inner] = fate
        return sent

    def receive(self) -> Arrival | None:
        """Return what arrived next, or None. Never blocks."""
        self._check_and_share_owner()
        self._send_due()
        return self._arrivals.popleft() if self._arrivals else self._translate(self._link.receive())

    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        """Return after ``timeout`` seconds, or earlier: also when a frame that was held back may leave."""
        self._check_and_share_owner()
        self._send_due()
        if not self._arrivals:
            self._link.wait(max(0.0, min(timeout, self._delayed.next_due - time.monotonic())), waker)
            self._send_due()

    def close(self, linger: float) -> None:
        """End within ``linger`` seconds; what was held back leaves now."""
        if self._ending():
            self._link.owner = self.owner
            self._flush(time.monotonic() + linger)
        self._link.close(linger)

    # -- what becomes of a frame -------------------------------------------------------------------------------

    def _check_and_share_owner(self, frame: bytes = b"") -> None:
        self._check(frame)
        self._link.owner = self.owner

    def _apply(self, peer: Peer, frame: bytes, fate: FrameFaults) -> Sent:
        if not fate.copies:
            return Sent.ACCEPTED
        due = time.monotonic() + fate.delay
        if fate.reordered and self._delayed.push_reordered(peer, bytes(frame), due + REORDER_TIMEOUT_S):
            return Sent.ACCEPTED
        sent = self._send_or_delay(peer, frame, due)
        if sent is not Sent.ACCEPTED:
            return sent
        if fate.copies > 1:
            self._send_or_delay(peer, frame, due)
        if self._delayed.schedule_reordered(peer, due):
            self._send_due()
        return sent

    def _send_or_delay(self, peer: Peer, frame: bytes, due: float) -> Sent:
        """Send a frame now, if it is time and nothing waits before it; else keep it."""
        if not self._delayed.has_pending(peer) and due <= time.monotonic():
            return self._link.send(peer, frame)
        self._delayed.push(peer, bytes(frame), due)
        return Sent.ACCEPTED

    def _send_due(self) -> None:
        """Send what was held back for long enough."""
        if self._delayed:
            self._delayed.send_due(time.monotonic(), self._link.send)

    def _flush(self, deadline: float) -> None:
        """Let everything leave that is held back, as far as there is room by the deadline."""
        self._delayed.send_all(self._link.send)
        while self._delayed and (left := deadline - time.monotonic()) > 0:
            self._link.wait(left)
            self._delayed.send_all(self._link.send)

    # -- for the two ends --------------------------------------------------------------------------------------

    def _inner_peer(self, peer: Peer) -> Peer | None:
        """Return the wrapped link's token of a peer; None when there is no such connection."""
        raise NotImplementedError

    def _translate(self, arrival: Arrival | None) -> Arrival | None:
        """Return what the wrapped link received, with its peer as our owner knows it."""
        raise NotImplementedError

    def _cut(self, peer: Peer) -> Sent:
        """End a connection, of which the wrapped link knows nothing."""
        raise NotImplementedError

    def _discard_peer(self, peer: Peer) -> None:
        """Drop what was meant for a connection that has ended."""
        self._delayed.discard_peer(peer)
        self._pending_faults.pop(peer, None)


class ChaosClientLink(ChaosLink):
    """The client's end: a cut closes the wrapped link and opens another."""

    def __init__(self, location: Location, connect: Callable[[], Link], faults: Faults) -> None:
        super().__init__(location, connect(), faults, "client")
        self._connect = connect
        self._up = False

    def _inner_peer(self, peer: Peer) -> Peer | None:
        return peer if self._up and not self._arrivals else None

    def _translate(self, arrival: Arrival | None) -> Arrival | None:
        if isinstance(arrival, Up):
            self._up = True
        elif isinstance(arrival, Down):
            self._up = False
            self._discard_peer(SERVER)
        return arrival

    def _cut(self, peer: Peer) -> Sent:
        try:
            link = self._connect()
        except TransportError:
            return Sent.ACCEPTED  # nothing to go on with: only the frame is lost
        self._link.close(0.0)
        self._link, self._up = link, False
        self._discard_peer(peer)
        self._arrivals.append(Down(SERVER, CUT_REASON))
        return Sent.ACCEPTED


class ChaosServerLink(ChaosLink):
    """The server's end: a cut gives the peer, which learns nothing of it, another token."""

    def __init__(self, location: Location, link: Link, faults: Faults) -> None:
        super().__init__(location, link, faults, "server")
        self._connected: dict[Peer, Up] = {}
        self._reconnected: dict[Peer, ReconnectedPeer] = {}

    def _inner_peer(self, peer: Peer) -> Peer | None:
        if isinstance(peer, ReconnectedPeer):
            return peer.peer if self._reconnected.get(peer.peer) == peer else None
        return None if peer in self._reconnected else peer

    def _translate(self, arrival: Arrival | None) -> Arrival | None:
        if arrival is None or isinstance(arrival, Gap):
            return arrival
        inner = arrival.peer
        if isinstance(arrival, Up):
            self._connected[inner] = arrival
        name = self._reconnected.get(inner)
        if isinstance(arrival, Down):
            self._connected.pop(inner, None)
            self._reconnected.pop(inner, None)
            self._discard_peer(inner)
        return arrival if name is None else arrival._replace(peer=name)

    def _cut(self, peer: Peer) -> Sent:
        former = self._reconnected.get(peer)
        self._reconnected[peer] = reborn = ReconnectedPeer(peer, former.reconnects + 1 if former else 1)
        self._discard_peer(peer)
        self._arrivals.append(Down(former or peer, CUT_REASON))
        if peer in self._connected:
            self._arrivals.append(self._connected[peer]._replace(peer=reborn))
        return Sent.ACCEPTED


def read_seed(text: str) -> int:
    """Read a whole number from 0. Raises ValueError."""
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"not a whole number from 0: {text!r}")
    return int(text)


def read_probability(text: str) -> float:
    """Read a number from 0 to 1. Raises ValueError."""
    probability = float(text)
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"not a number from 0 to 1: {text!r}")
    return probability


OPTIONS: Final[Mapping[str, Callable[[str], Any]]] = {
    "seed": read_seed,
    "loss": read_probability,
    "duplication": read_probability,
    "reorder": read_probability,
    "delay": read_seconds,
    "cut": read_probability,
}
"""The options of its own, which are those of `Faults`; all others are the wrapped transport's."""


class ChaosTransport:
    """``chaos+<scheme>:``: the transport of ``scheme``, spoiled.

    It keeps the contract but for what it is asked to break: it declares itself lossy, and with ``duplication`` or
    ``reorder`` frames come twice or out of order, as they do on no honest transport.
    """

    def __init__(self, scheme: str, transport: Transport) -> None:
        self.capabilities = replace(transport.capabilities, lossy=True)
        self.options: Mapping[str, Callable[[str], Any]] = {**transport.options, **OPTIONS}
        self._scheme = scheme
        self._transport = transport

    def bind(self, location: Location) -> ChaosLink:
        """Open the server's end. Raises what the wrapped transport does."""
        faults, bare = self._read(location)
        link = self._transport.bind(bare)
        return ChaosServerLink(link.location.replace(scheme=location.scheme, options=location.options), link, faults)

    def connect(self, location: Location) -> ChaosLink:
        """Open the client's end. Raises what the wrapped transport does."""
        faults, bare = self._read(location)
        return ChaosClientLink(location, lambda: self._transport.connect(bare), faults)

    def _read(self, location: Location) -> tuple[Faults, Location]:
        """Return what is asked of us, and the location with what is asked of the wrapped transport."""
        values = location.read(self.options)
        faults = Faults(**{name: value for name, value in values.items() if name in OPTIONS})
        rest = {name: text for name, text in location.options if name not in OPTIONS}
        return faults, location.replace(scheme=self._scheme, options=rest)
