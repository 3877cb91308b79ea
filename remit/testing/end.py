"""End: one end of the wire in a check: a bare link, and what has arrived at it; and two of them that have met."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from remit.location import Location
from remit.transport import SERVER, Arrival, Down, Frame, Gap, Link, Peer, Up

__all__ = ["End", "Pair"]

BATCH: Final = 4096
"""Arrivals taken from one link before another has its turn."""


class End:
    """A link, and what has arrived at it."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.arrivals: list[Arrival] = []
        self.late: set[bytes] = set()
        """Greetings that were sent more than once because they may be lost: the others come when they like."""

    @property
    def frames(self) -> list[bytes]:
        """What the frames among the arrivals carried."""
        return [bytes(arrival.data) for arrival in self.arrivals if isinstance(arrival, Frame)]

    @property
    def losses(self) -> list[Arrival]:
        """The arrivals that allow a transport to have lost something."""
        return [arrival for arrival in self.arrivals if isinstance(arrival, Down | Gap)]

    @property
    def ups(self) -> list[Up]:
        """The arrivals that say that somebody came."""
        return [arrival for arrival in self.arrivals if isinstance(arrival, Up)]

    @property
    def downs(self) -> list[Down]:
        """The arrivals that say that somebody went."""
        return [arrival for arrival in self.arrivals if isinstance(arrival, Down)]

    def drain(self) -> bool:
        """Keep what has arrived, up to a batch; True if there was anything."""
        count = 0
        while count < BATCH and (arrival := self.receive()) is not None:
            self.arrivals.append(arrival)
            count += 1
        return count > 0

    def receive(self) -> Arrival | None:
        """Return what arrived next, but for greetings that come late."""
        while (arrival := self.link.receive()) is not None:
            if not self.late or not isinstance(arrival, Frame) or bytes(arrival.data) not in self.late:
                return arrival
        return None

    def forget_frames(self) -> None:
        """Keep what is no frame."""
        self.arrivals[:] = [arrival for arrival in self.arrivals if not isinstance(arrival, Frame)]


class Pair:
    """A server's and a client's end that have met, and the server's token of the client."""

    def __init__(self, server: End, client: End, peer: Peer, location: Location) -> None:
        self.server = server
        self.client = client
        self.peer = peer
        self.location = location
        """Where a client finds the server."""

    @property
    def ends(self) -> tuple[End, End]:
        """Both."""
        return self.server, self.client

    @property
    def directions(self) -> Sequence[tuple[End, Peer, End]]:
        """Who writes, to whom, and who reads, for both directions."""
        return (self.client, SERVER, self.server), (self.server, self.peer, self.client)
