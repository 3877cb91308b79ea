"""Fault injector around any transport: frames are lost, duplicated, delayed or reordered, and connections cut.

``chaos+unix:///tmp/a.sock?seed=7&loss=0.2&duplication=0.1`` is ``unix:///tmp/a.sock`` with faults. Each end injects
faults into what it sends, so give the location to both. The same seed and the same calls give the same faults.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, NamedTuple

from remit.errors import TransportError
from remit.location import Location, read_count, read_seconds
from remit.transport import SERVER, Arrival, Down, Gap, Link, OwnedLink, Peer, Sent, Transport, Up, Wakeable
from remit.transports.authenticated import LinkWrapper, wrap_link


class FrameFaults(NamedTuple):
    """The faults drawn for one frame."""

    cut: bool
    copies: int
    reordered: bool
    delay: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Options of a location. All but ``seed`` and ``delay`` are probabilities for each frame that is sent."""

    seed: int = 0
    loss: float = 0.0
    """The frame is lost."""
    duplication: float = 0.0
    """The frame arrives twice."""
    reorder: float = 0.0
    """The next frame for the same peer overtakes it."""
    delay: float = 0.0
    """Longest delay of a frame, in seconds."""
    cut: float = 0.0
    """The connection ends, the frame is lost, and a new connection begins."""

    def draw(self, source: random.Random) -> FrameFaults:
        """Return the faults of the next frame."""
        # Always five numbers: changing one option must not change the faults that the others cause.
        loss, twice, overtaken, cut, delay = (source.random() for _ in range(5))
        copies = 0 if loss < self.loss else 2 if twice < self.duplication else 1
        return FrameFaults(cut < self.cut, copies, overtaken < self.reorder, delay * self.delay)


MAX_DELAYED: Final = 1024
"""Frames delayed for one peer, beyond which `send` returns FULL."""
NEVER: Final = float("inf")


class PeerQueue:
    """Delayed frames for one peer, each with the time from which it may leave. Reads no clock."""

    def __init__(self) -> None:
        self.frames: deque[tuple[float, bytes]] = deque()
        """In the order in which they leave."""
        self.overtaken: tuple[float, bytes] | None = None
        """The frame that leaves after the next one, or at its time if there is none."""
        self.refused: FrameFaults | None = None
        """Faults of the frame that the link refused."""

    def __bool__(self) -> bool:
        return bool(self.frames or self.overtaken or self.refused)

    def push(self, frame: bytes, due: float) -> None:
        """Delay a frame until it is due and all earlier ones have left."""
        self.frames.append((max(due, self.frames[-1][0]) if self.frames else due, frame))

    def push_overtaken(self, due: float) -> None:
        """Put the overtaken frame behind the others."""
        if self.overtaken is not None:
            self.push(self.overtaken[1], due)
            self.overtaken = None

    def send_due(self, now: float, send: Callable[[bytes], Sent]) -> float:
        """Send the frames that are due until the link is full; return the time at which the next one is due."""
        if self.overtaken is not None and self.overtaken[0] <= now:
            self.push_overtaken(self.overtaken[0])
        while self.frames and self.frames[0][0] <= now and send(self.frames[0][1]) is not Sent.FULL:
            self.frames.popleft()
        next_due = self.overtaken[0] if self.overtaken is not None else NEVER
        # A frame that is due and still here was refused by a full link, whose `wait` returns when there is room.
        if self.frames and self.frames[0][0] > now:
            next_due = min(next_due, self.frames[0][0])
        return next_due


REORDER_TIMEOUT_S: Final = 0.05
"""A frame that is to be overtaken leaves after this time if no other frame is sent."""
CUT_REASON: Final = "cut by chaos"


class ReconnectedPeer(NamedTuple):
    """Token of a peer whose connection was cut: the wrapped transport's token, and the number of cuts."""

    peer: Peer
    reconnects: int


class ChaosLink(LinkWrapper, OwnedLink):
    """Base of both ends: a link around the wrapped transport's link."""

    def __init__(self, location: Location, link: Link, faults: Faults, role: str) -> None:
        super().__init__(location, replace(link.capabilities, lossy=True))
        self._link = link
        self._faults = faults
        # A server must not draw the same faults as its clients from the same seed.
        self._random = random.Random(f"{faults.seed} {role}")
        self._queues: dict[Peer, PeerQueue] = {}
        """By the wrapped link's token. Empty queues are removed by the next call."""
        self._arrivals: deque[Arrival] = deque()

    # -- the contract --------------------------------------------------------------------------------------------

    def send(self, peer: Peer, frame: bytes) -> Sent:
        """Send one frame with the faults drawn for it. Never blocks. Raises FrameTooLarge."""
        self._check_and_share_owner(frame)
        self._send_due(time.monotonic())
        inner = self._inner_peer(peer)
        if inner is None:
            return Sent.GONE
        queue = self._queues.setdefault(inner, PeerQueue())
        if len(queue.frames) >= MAX_DELAYED:
            return Sent.FULL
        faults = queue.refused or self._faults.draw(self._random)
        queue.refused = None
        if faults.cut:
            return self._cut(inner)
        sent = self._apply(inner, queue, frame, faults)
        if sent is Sent.FULL:
            # The caller retries this frame, which keeps its faults: they must not depend on how full the link was.
            queue.refused = faults
        return sent

    def receive(self) -> Arrival | None:
        """Return the next arrival, or None. Never blocks."""
        self._check_and_share_owner()
        self._send_due(time.monotonic())
        return self._arrivals.popleft() if self._arrivals else self._translate(self._link.receive())

    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        """Wait as the wrapped link does, or until a delayed frame may leave."""
        self._check_and_share_owner()
        now = time.monotonic()
        next_due = self._send_due(now)
        if not self._arrivals:
            self._link.wait(max(0.0, min(timeout, next_due - now)), waker)
            self._send_due(time.monotonic())

    def check_location(self) -> None:
        """Check as the wrapped link does."""
        self._check_and_share_owner()
        self._link.check_location()

    def recover(self) -> bool:
        """Have the wrapped link release its locks. Return False: an arrival of it may be lost here, such as its Up."""
        super().recover()
        return False

    def close(self, linger: float) -> None:
        """Close within ``linger`` seconds. Delayed frames leave now."""
        if self._ending():
            self._link.owner = self.owner
            self._flush(time.monotonic() + linger)
        super().close(linger)

    # -- faults --------------------------------------------------------------------------------------------------

    def _check_and_share_owner(self, frame: bytes = b"") -> None:
        self._check(frame)
        self._link.owner = self.owner
        self.why = self._link.why

    def _apply(self, peer: Peer, queue: PeerQueue, frame: bytes, faults: FrameFaults) -> Sent:
        if not faults.copies:
            return Sent.ACCEPTED
        due = time.monotonic() + faults.delay
        if faults.reordered and queue.overtaken is None:
            queue.overtaken = due + REORDER_TIMEOUT_S, bytes(frame)
            return Sent.ACCEPTED
        sent = self._send_or_delay(peer, queue, frame, due)
        if sent is not Sent.ACCEPTED:
            return sent
        if faults.copies > 1:
            self._send_or_delay(peer, queue, frame, due)
        if queue.overtaken is not None:
            queue.push_overtaken(due)
            self._send_due(time.monotonic())
        return sent

    def _send_or_delay(self, peer: Peer, queue: PeerQueue, frame: bytes, due: float) -> Sent:
        # Not past the delayed frames, even if it is due: only `reorder` may change the order.
        if not queue.frames and due <= time.monotonic():
            return self._link.send(peer, frame)
        queue.push(bytes(frame), due)
        return Sent.ACCEPTED

    def _send_due(self, now: float) -> float:
        """Send the delayed frames that are due; return the time at which the next one is due."""
        next_due = NEVER
        for peer, queue in list(self._queues.items()):
            next_due = min(next_due, queue.send_due(now, partial(self._link.send, peer)))
            if not queue:
                del self._queues[peer]
        return next_due

    def _flush(self, deadline: float) -> None:
        """Send all delayed frames for which there is room before the deadline."""
        self._send_due(NEVER)
        while any(queue.frames for queue in self._queues.values()) and (left := deadline - time.monotonic()) > 0:
            self._link.wait(left)
            self._send_due(NEVER)

    # -- hooks of the two ends -----------------------------------------------------------------------------------

    def _inner_peer(self, peer: Peer) -> Peer | None:
        """Return the wrapped link's token of a peer, or None if the peer is not connected."""
        raise NotImplementedError

    def _translate(self, arrival: Arrival | None) -> Arrival | None:
        """Return an arrival of the wrapped link with this link's token of its peer."""
        raise NotImplementedError

    def _cut(self, peer: Peer) -> Sent:
        """Simulate the end of a peer's connection."""
        raise NotImplementedError


class ChaosClientLink(ChaosLink):
    """The client's end. A cut closes the wrapped link and opens another one."""

    def __init__(self, location: Location, link: Link, faults: Faults, connect: Callable[[], Link]) -> None:
        super().__init__(location, link, faults, "client")
        self._connect, self._up = connect, False

    def _inner_peer(self, peer: Peer) -> Peer | None:
        return peer if self._up and not self._arrivals else None

    def _translate(self, arrival: Arrival | None) -> Arrival | None:
        if isinstance(arrival, Up):
            self._up = True
        elif isinstance(arrival, Down):
            self._up = False
            self._queues.pop(SERVER, None)
        return arrival

    def _cut(self, peer: Peer) -> Sent:
        try:
            link = self._connect()
        except TransportError:
            return Sent.ACCEPTED  # without a new link, only the frame is lost
        self._link.close(0.0)
        self._link, self._up = link, False
        self._queues.pop(peer, None)
        self._arrivals.append(Down(SERVER, CUT_REASON))
        return Sent.ACCEPTED


class ChaosServerLink(ChaosLink):
    """The server's end. A cut gives the peer another token; the peer itself does not notice."""

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
            self._queues.pop(inner, None)
        return arrival if name is None else arrival._replace(peer=name)

    def _cut(self, peer: Peer) -> Sent:
        former = self._reconnected.get(peer)
        self._reconnected[peer] = token = ReconnectedPeer(peer, former.reconnects + 1 if former else 1)
        self._queues.pop(peer, None)
        self._arrivals.append(Down(former or peer, CUT_REASON))
        if peer in self._connected:
            self._arrivals.append(self._connected[peer]._replace(peer=token))
        return Sent.ACCEPTED


def read_probability(text: str) -> float:
    """Read a number from 0 to 1. Raises ValueError."""
    probability = float(text)
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"not a number from 0 to 1: {text!r}")
    return probability


OPTIONS: Final[Mapping[str, Callable[[str], Any]]] = {
    "seed": partial(read_count, least=0),
    "delay": read_seconds,
    **dict.fromkeys(("loss", "duplication", "reorder", "cut"), read_probability),
}
"""The options of `Faults`. All others belong to the wrapped transport."""


class ChaosTransport:
    """``chaos+<scheme>:``: the transport of ``scheme`` with injected faults.

    It declares itself lossy. With ``duplication`` or ``reorder`` it breaks rules 2 and 3 of the contract on purpose.
    """

    def __init__(self, scheme: str, transport: Transport) -> None:
        self.capabilities = replace(transport.capabilities, lossy=True)
        self.options: Mapping[str, Callable[[str], Any]] = {**transport.options, **OPTIONS}
        self._scheme = scheme
        self._transport = transport

    def bind(self, location: Location) -> ChaosLink:
        """Open the server's link. Raises the wrapped transport's errors."""
        faults, bare = self._read(location)
        served = partial(Location.replace, scheme=location.scheme, options=location.options)
        return wrap_link(
            lambda: self._transport.bind(bare), lambda link: ChaosServerLink(served(link.location), link, faults)
        )

    def connect(self, location: Location) -> ChaosLink:
        """Open the client's link. Raises the wrapped transport's errors."""
        faults, bare = self._read(location)
        connect = partial(self._transport.connect, bare)
        return wrap_link(connect, lambda link: ChaosClientLink(location, link, faults, connect))

    def _read(self, location: Location) -> tuple[Faults, Location]:
        """Return the faults, and the location of the wrapped transport with its own options."""
        values = location.read(self.options)
        faults = Faults(**{name: value for name, value in values.items() if name in OPTIONS})
        rest = {name: text for name, text in location.options if name not in OPTIONS}
        return faults, location.replace(scheme=self._scheme, options=rest)
