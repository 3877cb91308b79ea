"""Links that write down what they are given, and chaos around them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from remit import Location
from remit.transport import SERVER, Arrival, Capabilities, OwnedLink, Peer, Sent, Up, Wakeable
from remit.transports.chaos import ChaosTransport


class Notebook(OwnedLink):
    """A link that only writes down what it is asked to send."""

    def __init__(self, location: Location, capabilities: Capabilities) -> None:
        super().__init__(location, capabilities)
        self.sent: list[tuple[Peer, bytes]] = []
        self.waits: list[float] = []
        self.arrivals: deque[Arrival] = deque()
        self.answer = Sent.ACCEPTED
        self.closed = 0

    def send(self, peer: Peer, frame: bytes) -> Sent:
        self._check(frame)
        if self.answer is Sent.ACCEPTED:
            self.sent.append((peer, frame))
        return self.answer

    def receive(self) -> Arrival | None:
        return self.arrivals.popleft() if self.arrivals else None

    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        self.waits.append(timeout)

    def close(self, linger: float) -> None:
        self.closed += self._ending()


class Stationer:
    """A transport of notebooks."""

    capabilities = Capabilities(max_frame=100)
    options: Mapping[str, object] = {"paper": str}

    def __init__(self) -> None:
        self.made: list[Notebook] = []
        self.asked: list[Location] = []

    def bind(self, location: Location) -> Notebook:
        self.asked.append(location)
        self.made.append(Notebook(location, self.capabilities))
        return self.made[-1]

    def connect(self, location: Location) -> Notebook:
        link = self.bind(location)
        link.arrivals.append(Up(SERVER))
        return link


class Desk:
    """A chaos link over notebooks, under a clock that stands still."""

    def __init__(self, end: str, query: str) -> None:
        self.inner = Stationer()
        self.link = getattr(ChaosTransport("note", self.inner), end)(Location(f"chaos+note://x?{query}"))
        self.peer: Peer = SERVER if end == "connect" else "p"
        if end == "connect":
            assert self.link.receive() == Up(SERVER)

    def send(self, *numbers: int) -> list[Sent]:
        return [self.link.send(self.peer, b"%d" % number) for number in numbers]

    @property
    def sent(self) -> list[int]:
        return [int(frame) for book in self.inner.made for _, frame in book.sent]


def outcome(end: str, query: str) -> list[int]:
    desk = Desk(end, query)
    desk.send(*range(500))
    return desk.sent
