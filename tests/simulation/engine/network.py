"""Simulated network: paths between clients and hosts on which frames are lost, repeated, overtaken and cut."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from dataclasses import dataclass
from typing import Final

from engine.virtual_clock import NEVER, Actor, World
from remit.location import Location
from remit.transport import SERVER, Arrival, Capabilities, Down, Frame, Gap, Peer, Sent, Up, Wakeable

__all__ = ["ClientEnd", "Faults", "Host", "Network", "Path", "ServerEnd"]


CAPABILITIES: Final = Capabilities(max_frame=1 << 20, lossy=True)
NOWHERE: Final = Location("memory://simulation")
TICK: Final = 0.001
"""Seconds between an arrival and the moment when its receiver looks: what comes meanwhile is found as well."""
RECONNECT: Final = 0.5
"""Seconds at the most after which a client has found a server that began to listen."""


@dataclass(slots=True)
class Faults:
    """What happens to single frames: probabilities, and seconds."""

    loss: float = 0.0
    duplication: float = 0.0
    reorder: float = 0.0
    late: float = 0.05
    """Seconds at the most by which a frame that is overtaken comes later."""
    latency: float = 0.001
    capacity: int = 64
    """Frames on the way in one direction of one path beyond which a send is FULL."""


class _End:
    """A link: what the real endpoints use."""

    capabilities = CAPABILITIES
    location = NOWHERE

    def __init__(self, actor: Actor) -> None:
        self.owner = 0
        self.timeout = NEVER
        """What the last `wait` asked for: nobody sleeps here."""
        self.actor = actor
        self.arrivals: deque[Arrival] = deque()

    def receive(self) -> Arrival | None:
        """Return what arrived next, or None."""
        return self.arrivals.popleft() if self.arrivals else None

    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        """Note for how long the caller would sleep."""
        self.timeout = timeout

    def put(self, arrival: Arrival) -> None:
        """Let something arrive."""
        self.arrivals.append(arrival)
        self.actor.wake(self.actor.world.now + TICK)


class ClientEnd(_End):
    """A client's link: one path at a time."""

    def __init__(self, actor: Actor, host: Host) -> None:
        super().__init__(actor)
        self.host = host
        self.path: Path | None = None
        self.up = False
        """Whether the client was told of a connection, and of no end of it."""
        self.closed = False
        host.network.join(self)

    def send(self, peer: Peer, frame: bytes) -> Sent:
        """Give a frame to the network."""
        if self.path is not None:
            return self.host.network.carry(self.path, frame, upwards=True)
        return Sent.ACCEPTED if self.up else Sent.GONE

    def close(self, linger: float) -> None:
        """Leave."""
        self.closed = True
        if self.path is not None:
            self.host.network.leave(self.path)
            self.path = None


class ServerEnd(_End):
    """A server's link: all the paths of its host."""

    def __init__(self, actor: Actor, host: Host) -> None:
        super().__init__(actor)
        self.host = host

    def send(self, peer: Peer, frame: bytes) -> Sent:
        """Give a frame to the network."""
        path = self.host.paths.get(peer)
        return Sent.GONE if path is None else self.host.network.carry(path, frame, upwards=False)

    def close(self, linger: float) -> None:
        """Leave: from now on nobody listens at this host."""
        if self.host.end is self:
            self.host.end = None


class Host:
    """An address at which one server listens, or none."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.end: ServerEnd | None = None
        self.paths: dict[Peer, Path] = {}
        """By the token under which the server knows them; some lead nowhere any more."""
        self.clients: dict[ClientEnd, None] = {}

    def listen(self, end: ServerEnd) -> None:
        """A server begins to listen: whoever has no path gets one, sooner or later."""
        self.end = end
        world = self.network.world
        for client in self.clients:
            if client.path is None:
                world.after(world.random.random() * RECONNECT, self.network.connect, client)


class Path:
    """A connection. What is known of its end at either side is another matter."""

    __slots__ = ("blocked_until", "client", "host", "last", "open", "token", "under_way")

    def __init__(self, token: int, client: ClientEnd, host: Host) -> None:
        self.token = token
        self.client = client
        self.host = host
        self.open = True
        self.blocked_until = 0.0
        self.under_way = [0, 0]
        self.last = [0.0, 0.0]


class Network:
    """Joins clients to hosts. All faults of single frames happen here."""

    def __init__(self, world: World, faults: Faults) -> None:
        self.world = world
        self.faults = faults
        self.counts: Counter[str] = Counter()
        self._tokens = itertools.count(1)

    # -- frames ------------------------------------------------------------------------------------------------

    def carry(self, path: Path, frame: bytes, *, upwards: bool) -> Sent:
        """Take a frame, for the server if ``upwards``."""
        faults, chance, now = self.faults, self.world.random.random, self.world.now
        if path.under_way[upwards] >= faults.capacity:
            return Sent.FULL
        self.counts["frames"] += 1
        if not path.open or now < path.blocked_until or chance() < faults.loss:
            self.counts["lost"] += 1
            return Sent.ACCEPTED
        self._launch(path, frame, upwards)
        if faults.duplication and chance() < faults.duplication:
            self.counts["duplicated"] += 1
            self._launch(path, frame, upwards)
        return Sent.ACCEPTED

    def _launch(self, path: Path, frame: bytes, upwards: bool) -> None:
        faults, chance = self.faults, self.world.random.random
        moment = self.world.now + faults.latency
        if faults.reorder and chance() < faults.reorder:
            self.counts["overtaken"] += 1
            moment += chance() * faults.late
        else:
            moment = path.last[upwards] = max(moment, path.last[upwards])
        path.under_way[upwards] += 1
        self.world.at(moment, self._land, path, frame, upwards, path.host.end)

    def _land(self, path: Path, frame: bytes, upwards: bool, listened: ServerEnd | None) -> None:
        path.under_way[upwards] -= 1
        sender = path.host.end if not upwards else path.client
        if sender is not None and path.under_way[upwards] == self.faults.capacity - 1:
            sender.actor.wake(self.world.now)  # there is room again
        if not path.open:
            return
        if upwards:
            # What was on its way to a server that died is lost with it: no other one ever hears of it.
            if listened is not None and path.host.end is listened:
                listened.put(Frame(path.token, frame))
        elif not path.client.closed:
            path.client.put(Frame(SERVER, frame))

    # -- paths -------------------------------------------------------------------------------------------------

    def join(self, client: ClientEnd) -> None:
        """A new client link: it comes up when somebody listens."""
        client.host.clients[client] = None
        if client.host.end is not None:
            self.world.after(self.faults.latency, self.connect, client)

    def connect(self, client: ClientEnd) -> None:
        """Give a client a new path, under a new token, if it has none and somebody listens."""
        host = client.host
        if client.closed or client.path is not None or host.end is None:
            return
        path = client.path = Path(next(self._tokens), client, host)
        host.paths[path.token] = path
        if not client.up:
            client.up = True
            client.put(Up(SERVER))
        if self.world.random.random() < 0.5:
            host.end.put(Up(path.token))

    def leave(self, path: Path) -> None:
        """A client closes its link, or dies. What it sent before may still arrive."""
        path.host.clients.pop(path.client, None)
        self.world.after(self.faults.latency + self.faults.late, self._end, path)

    def cut(self, path: Path, *, tell: bool, away: float) -> None:
        """End a path; the client has another one after ``away`` seconds. Not told, it learns of neither."""
        client = path.client
        self._end(path)
        if client.closed or client.path is not path:
            return
        self.counts["cuts"] += 1
        client.path = None
        if tell:
            client.up = False
            client.put(Down(SERVER, "cut"))
        elif self.world.random.random() < 0.5:
            client.put(Gap("frames may have been lost"))
        self.world.after(away, self.connect, client)

    def _end(self, path: Path) -> None:
        if not path.open:
            return
        path.open = False
        # Three cases: 1. the server is told; 2. it is told GONE when it sends; 3. it goes on sending into the void.
        case = self.world.random.random()
        if case < 0.7:
            path.host.paths.pop(path.token, None)
        if case < 0.4 and path.host.end is not None:
            path.host.end.put(Down(path.token, "cut"))
