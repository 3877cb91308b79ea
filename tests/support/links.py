"""Driving bare links: what arrives is kept, what is awaited has a deadline."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from unittest import mock

from remit import Location
from remit.plugins import find_transport
from remit.transport import SERVER, Arrival, Down, Frame, Gap, Link, Peer, Poller, Sent, Transport, Up

__all__ = [
    "DEADLINE",
    "LONG",
    "Pair",
    "close_when_full",
    "drain",
    "frames",
    "in_time",
    "meet",
    "put",
    "turn",
    "until",
    "waits",
]

DEADLINE = 45.0
"""Seconds after which a fact that has not come true is a failure."""
LONG = 3600.0
"""Seconds for a `wait` that something must end early."""
TURN = 0.01
"""Seconds that one link waits before another has its turn."""
BATCH = 4096
"""Arrivals taken from one link before another has its turn."""


def transport_of(location: Location) -> Transport:
    return find_transport(location.scheme)


class Pair:
    """A server's and a client's link at one location, with what has arrived at each."""

    def __init__(self, location: Location) -> None:
        self.transport = transport_of(location)
        self.server = self.transport.bind(location)
        self.location = self.server.location
        self.client = self.transport.connect(self.location)
        self.at_server: list[Arrival] = []
        self.at_client: list[Arrival] = []
        self.peer: Peer = None

    def turn(self) -> None:
        """Receive what has arrived at both ends."""
        turn((self.server, self.at_server), (self.client, self.at_client))

    def until(self, fact: Callable[[], object]) -> None:
        until(fact, self.turn)

    def meet(self) -> Peer:
        """Return the server's token of the client once a frame has gone each way."""
        self.peer = meet((self.server, self.at_server), (self.client, self.at_client))
        return self.peer

    def to_server(self, data: bytes) -> None:
        until(lambda: self.client.send(SERVER, data) is Sent.ACCEPTED, self.turn)

    def to_client(self, data: bytes) -> None:
        until(lambda: self.server.send(self.peer, data) is Sent.ACCEPTED, self.turn)

    def close(self) -> None:
        self.client.close(0.0)
        self.server.close(0.0)

    def __enter__(self) -> Pair:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def drain(link: Link, arrivals: list[Arrival]) -> bool:
    """Keep what has arrived, up to a batch; True if there was anything."""
    count = 0
    while count < BATCH and (arrival := link.receive()) is not None:
        arrivals.append(arrival)
        count += 1
    return count > 0


def turn(*ends: tuple[Link, list[Arrival]]) -> None:
    """Give each link one turn: drain all; where nothing came, wait a little on each."""
    moved = [drain(link, arrivals) for link, arrivals in ends]
    if not any(moved):
        for link, _ in ends:
            link.wait(TURN)


def until(fact: Callable[[], object], step: Callable[[], None]) -> None:
    """Repeat ``step`` until ``fact()`` holds."""
    deadline = time.monotonic() + DEADLINE
    while not fact():
        assert time.monotonic() < deadline, f"not within {DEADLINE} s: {fact}"
        step()


def meet(server: tuple[Link, list[Arrival]], client: tuple[Link, list[Arrival]]) -> Peer:
    """Exchange one frame each way; return the server's token. Nothing of it stays in the lists but Up."""
    link, arrivals = client
    until(lambda: Up in map(type, arrivals), lambda: turn(server, client))
    put(link, SERVER, b"hello?", lambda: turn(server, client))
    until(lambda: frames(server[1]), lambda: turn(server, client))
    peer = next(arrival.peer for arrival in server[1] if isinstance(arrival, Frame))
    put(server[0], peer, b"hello!", lambda: turn(server, client))
    until(lambda: frames(arrivals), lambda: turn(server, client))
    assert frames(server[1]) == [b"hello?"]
    assert frames(arrivals) == [b"hello!"]
    for kept in (server[1], arrivals):
        kept[:] = [arrival for arrival in kept if not isinstance(arrival, Frame)]
    return peer


def put(link: Link, peer: Peer, data: bytes, step: Callable[[], None]) -> None:
    """Send one frame, in as many attempts as it takes."""
    until(lambda: link.send(peer, data) is Sent.ACCEPTED, step)


def frames(arrivals: list[Arrival]) -> list[bytes]:
    """Return what the frames among the arrivals carried."""
    return [bytes(arrival.data) for arrival in arrivals if isinstance(arrival, Frame)]


def losses(arrivals: list[Arrival]) -> list[Arrival]:
    """Return the arrivals that allow a transport to have lost something."""
    return [arrival for arrival in arrivals if isinstance(arrival, Down | Gap)]


def waits(link: Link, seconds: float) -> int:
    """Return how often a link that is always waited for asks the kernel."""
    asked: list[float] = []
    poll = Poller.poll

    def counted(poller: Poller, timeout: float) -> list[tuple[int, int]]:
        asked.append(timeout)
        return poll(poller, timeout)

    with mock.patch.object(Poller, "poll", counted):
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            link.wait(left)
    return len(asked)


def close_when_full(pair: Pair, towards: str) -> tuple[list[bytes], list[bytes]]:
    """Fill the way towards one end, close the other, and read only then; return what was taken and what arrived."""
    writer, to = (pair.client, SERVER) if towards == "server" else (pair.server, pair.peer)
    reader, kept = (pair.server, pair.at_server) if towards == "server" else (pair.client, pair.at_client)
    data, taken = os.urandom(10_000), 0
    while writer.send(to, data) is Sent.ACCEPTED:
        taken += 1
    closing = threading.Thread(target=in_time, args=(lambda: writer.close(DEADLINE), writer))
    closing.start()
    until(lambda: Down in map(type, kept), lambda: turn((reader, kept)))
    closing.join(DEADLINE)
    return [data] * taken, frames(kept)


def in_time(call: Callable[[], object], *links: Link) -> None:
    """Run ``call`` in a thread of its own, which owns the links meanwhile; it must come to an end."""
    errors: list[BaseException] = []

    def run() -> None:
        for link in links:
            link.owner = threading.get_ident()
        try:
            call()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(DEADLINE)
    assert not thread.is_alive(), f"still blocked after {DEADLINE} s: {call}"
    for link in links:
        link.owner = threading.get_ident()
    if errors:
        raise errors[0]
