"""Links of one run of a check, their recorded arrivals, and the deadline of the run."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from remit.location import Location
from remit.testing.harness import Harness
from remit.testing.violations import ErrorRecorder, Violation, current_line, expect, expect_frames
from remit.transport import SERVER, Arrival, Capabilities, Down, Frame, Gap, Link, Peer, Sent, Up

__all__ = ["LONG_WAIT_S", "LinkEnd", "LinkPair", "Trial"]


BATCH: Final = 4096
"""Arrivals taken from one link before another has its turn."""


class LinkEnd:
    """A link, and what has arrived at it."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.arrivals: list[Arrival] = []
        self.repeated: set[bytes] = set()
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
            if not self.repeated or not isinstance(arrival, Frame) or bytes(arrival.data) not in self.repeated:
                return arrival
        return None

    def discard_frames(self) -> None:
        """Keep what is no frame."""
        self.arrivals[:] = [arrival for arrival in self.arrivals if not isinstance(arrival, Frame)]


class LinkPair:
    """A server's and a client's end that have met, and the server's token of the client."""

    def __init__(self, server: LinkEnd, client: LinkEnd, peer: Peer, location: Location) -> None:
        self.server = server
        self.client = client
        self.peer = peer
        self.location = location
        """Where a client finds the server."""

    @property
    def ends(self) -> tuple[LinkEnd, LinkEnd]:
        """Both."""
        return self.server, self.client

    @property
    def directions(self) -> Sequence[tuple[LinkEnd, Peer, LinkEnd]]:
        """Who writes, to whom, and who reads, for both directions."""
        return (self.client, SERVER, self.server), (self.server, self.peer, self.client)


LONG_WAIT_S: Final = 3600.0
"""Seconds for a `wait` that something must end early."""
POLL_S: Final = 0.01
"""Seconds that one link waits before another has its turn."""
_greetings = itertools.count(1)


class Trial:
    """One check's links, which are closed at its end, and the moment by which it must have ended."""

    def __init__(self, harness: Harness, deadline: float, *, breakable: bool = False) -> None:
        self.harness = harness
        self.breakable = breakable
        self.transport = harness.transport
        self.deadline = deadline
        self.location = harness.location()
        self._ends_at = time.monotonic() + deadline
        self._links: list[Link] = []

    @property
    def capabilities(self) -> Capabilities:
        """The transport's, with what the location changes once a link is open."""
        return self._links[0].capabilities if self._links else self.transport.capabilities

    @property
    def seconds_left(self) -> float:
        """Seconds until the deadline, not below 0."""
        return max(0.0, self._ends_at - time.monotonic())

    def truncate(self, data: bytes) -> bytes:
        """Return as much of it as fits into a frame."""
        return data[: self.capabilities.max_frame]

    # -- opening and closing -----------------------------------------------------------------------------------

    def bind(self, location: Location | None = None) -> LinkEnd:
        """Open a server's end, at the check's location unless told otherwise."""
        return self._track(self.transport.bind(location or self.location))

    def connect(self, location: Location) -> LinkEnd:
        """Open a client's end to where a server says that it is."""
        return self._track(self.transport.connect(self.harness.reach(location, breakable=self.breakable)))

    def open_pair(self, location: Location | None = None) -> LinkPair:
        """Return a server and a client after a frame has gone each way."""
        server = self.bind(location)
        client = self.connect(server.link.location)
        return LinkPair(server, client, self.exchange_greetings(server, client), server.link.location)

    def free_location(self) -> Location:
        """Return a location at which nobody is now but which stays the same when somebody binds it."""
        if self.location.port != 0:
            return self.location
        probe = self.transport.bind(self.location)
        probe.close(0.0)
        return probe.location

    def close_end(self, end: LinkEnd, linger: float) -> None:
        """Close an end before the check is over."""
        self._links.remove(end.link)
        end.link.close(linger)

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for link in reversed(self._links):
                link.owner = threading.get_ident()
                link.close(0.0)
        finally:
            self.harness.finish()

    def _track(self, link: Link) -> LinkEnd:
        self._links.append(link)
        return LinkEnd(link)

    # -- waiting -----------------------------------------------------------------------------------------------

    def poll(self, *ends: LinkEnd) -> None:
        """Give each end one turn: receive all; where nothing came, wait a little on each."""
        moved = [end.drain() for end in ends]
        if not any(moved):
            for end in ends:
                end.link.wait(POLL_S)

    def wait_until(self, fact: Callable[[], object], what: str, *ends: LinkEnd) -> None:
        """Give the ends their turns until ``fact()`` holds. Raises Violation at the deadline."""
        while not fact():
            expect(self.seconds_left, f"not within {self.deadline} s: {what}")
            self.poll(*ends)

    def send(self, end: LinkEnd, peer: Peer, data: bytes, *ends: LinkEnd) -> None:
        """Send one frame, in as many attempts as it takes, while ``ends`` have their turns."""

        def taken() -> bool:
            said = end.link.send(peer, data)
            gone = said is Sent.GONE and peer != SERVER and any(down.peer == peer for down in end.downs)
            expect(not gone, f"the connection ended: {end.losses}")
            return said is Sent.ACCEPTED

        self.wait_until(taken, f"send takes a frame of {len(data)} bytes", *(ends or (end,)))

    def receive_frames(self, end: LinkEnd, count: int, *ends: LinkEnd) -> None:
        """Wait until so many frames have arrived, or fewer if the transport says that it lost some."""
        quiet_at = time.monotonic() + self.harness.patience
        lossy = self.capabilities.lossy

        def arrived() -> bool:
            return len(end.frames) >= count or bool(end.losses) or (lossy and time.monotonic() > quiet_at)

        try:
            self.wait_until(arrived, f"{count} frames arrive", *(ends or (end,)))
        except Violation as error:
            raise Violation(f"{error}, but {len(end.frames)} and no word of a loss") from None

    def exchange_greetings(self, server: LinkEnd, client: LinkEnd) -> Peer:
        """Exchange one frame each way; return the server's token. No frame is kept."""
        both = server, client
        self.wait_until(lambda: client.ups, "the client's link says Up", *both)
        number = next(_greetings)
        peer = self._greet(client, SERVER, b"hello? %d" % number, server)
        self._greet(server, peer, b"hello! %d" % number, client)
        for end in both:
            end.discard_frames()
        return peer

    def _greet(self, writer: LinkEnd, to: Peer, data: bytes, reader: LinkEnd) -> Peer:
        """Send a frame until it has arrived, once unless the transport may lose some; return under which token."""
        self.send(writer, to, data, writer, reader)
        lossy = self.capabilities.lossy

        def arrived() -> bool:
            if lossy and not reader.frames:
                writer.link.send(to, data)
            return bool(reader.frames)

        self.wait_until(arrived, "the first frame arrives", writer, reader)
        expect_frames(reader.frames[: 1 if lossy else None], [data])
        if lossy:
            reader.repeated.add(data)
        return next(arrival.peer for arrival in reader.arrivals if isinstance(arrival, Frame))

    @contextlib.contextmanager
    def in_thread(self, call: Callable[[], object], *ends: LinkEnd) -> Iterator[None]:
        """Run ``call`` in a thread that owns the ends' links until the block ends; it must end by the deadline."""
        caught = ErrorRecorder()

        def run() -> None:
            with caught:
                for end in ends:
                    end.link.owner = threading.get_ident()
                call()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield
        thread.join(self.seconds_left)
        if thread.is_alive():
            raise Violation(f"still blocked after {self.deadline} s, at {current_line(thread)}")
        for end in ends:
            end.link.owner = threading.get_ident()
        if caught.error is not None:
            raise caught.error
