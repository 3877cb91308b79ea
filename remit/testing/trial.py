"""Trial of a check, which owns its links and its deadline, and the expectations, which raise Violation."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from remit.location import Location
from remit.testing.harness import Harness
from remit.transport import SERVER, Arrival, Capabilities, Down, Frame, Gap, Link, Peer, Sent, Up

BATCH: Final = 4096  # Arrivals received from one link before the next link is polled.
LONG_WAIT_S: Final = 3600.0  # Timeout of a wait that a frame or a waker must end.
POLL_S: Final = 0.01  # Seconds that one idle link waits before the next link is polled.
_greetings = itertools.count(1)


class Violation(AssertionError):
    """Raised by a check when a transport violates the contract; the text describes what was observed."""


class NotApplicable(Exception):
    """Raised by a check that cannot run here; the text gives the reason."""


def expect(fact: object, otherwise: str) -> None:
    """Raise a Violation with the text ``otherwise``, unless the fact holds."""
    if not fact:
        raise Violation(otherwise)


def expect_frames(got: Sequence[bytes], sent: Sequence[bytes], *, lossy: bool = False) -> None:
    """Raise a Violation unless the frames received are those sent or, if ``lossy``, some of them in order."""
    if list(got) == list(sent):
        return
    # `in` on an iterator consumes it up to the match, so this tests for a subsequence in linear time.
    rest = iter(sent)
    if lossy and all(any(frame == each for each in rest) for frame in got):
        return
    pairs = enumerate(zip(got, sent, strict=False))
    first = next((number for number, (one, other) in pairs if one != other), min(len(got), len(sent)))
    seen, wanted = (_shown(frames[first]) if first < len(frames) else "missing" for frames in (got, sent))
    fewer, more = len(got) < len(sent), len(got) > len(sent)
    what = "lost" if fewer else "repeated or invented" if more else "altered or out of order"
    raise Violation(
        f"{what}: {len(sent)} frames were sent, {len(got)} received; "
        f"frame {first} received is {seen}, frame {first} sent is {wanted}"
    )


def _shown(data: bytes) -> str:
    # Frames of many megabytes would fill a report.
    return repr(data) if len(data) <= 40 else f"{data[:40]!r}... ({len(data)} bytes)"


class ErrorRecorder(contextlib.AbstractContextManager["ErrorRecorder"]):
    """Context manager that suppresses every exception of its block and keeps the first one."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self.error = self.error or error
        return True


def current_line(thread: threading.Thread) -> str:
    """Return the line that a thread executes: the innermost one of this package, and the innermost of all."""
    frame = sys._current_frames().get(thread.ident or 0)
    stack = traceback.extract_stack(frame) if frame is not None else []
    ours = [each for each in stack if Path(each.filename).parent == Path(__file__).parent]
    return " in ".join(f"{Path(each.filename).name}:{each.lineno} {each.name}" for each in [*ours[-1:], *stack[-1:]])


class LinkEnd:
    """A link and the arrivals that it has returned."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.arrivals: list[Arrival] = []
        # Greetings that were sent several times over a lossy transport. Late copies are ignored.
        self.repeated: set[bytes] = set()

    @property
    def frames(self) -> list[bytes]:
        """Data of the recorded frames."""
        return [bytes(arrival.data) for arrival in self.arrivals if isinstance(arrival, Frame)]

    @property
    def losses(self) -> list[Arrival]:
        """Arrivals that permit the transport to have lost frames."""
        return [arrival for arrival in self.arrivals if isinstance(arrival, Down | Gap)]

    @property
    def ups(self) -> list[Up]:
        """Recorded arrivals that report a connection."""
        return [arrival for arrival in self.arrivals if isinstance(arrival, Up)]

    @property
    def downs(self) -> list[Down]:
        """Recorded arrivals that report the end of a connection."""
        return [arrival for arrival in self.arrivals if isinstance(arrival, Down)]

    def drain(self) -> bool:
        """Record the queued arrivals, at most a batch; return whether there were any."""
        before = len(self.arrivals)
        while len(self.arrivals) < before + BATCH and (arrival := self.receive()) is not None:
            self.arrivals.append(arrival)
        return len(self.arrivals) > before

    def receive(self) -> Arrival | None:
        """Return the next arrival, without late copies of greetings."""
        while (arrival := self.link.receive()) is not None:
            if not self.repeated or not isinstance(arrival, Frame) or bytes(arrival.data) not in self.repeated:
                return arrival
        return None

    def discard_frames(self) -> None:
        """Remove the recorded frames, but not the other arrivals."""
        self.arrivals[:] = [arrival for arrival in self.arrivals if not isinstance(arrival, Frame)]


class LinkPair:
    """A connected server and client, and the server's token of the client."""

    def __init__(self, server: LinkEnd, client: LinkEnd, peer: Peer) -> None:
        self.server = server
        self.client = client
        self.peer = peer
        self.location = server.link.location
        """Location for further clients."""
        self.ends = (server, client)
        self.directions: Sequence[tuple[LinkEnd, Peer, LinkEnd]] = ((client, SERVER, server), (server, peer, client))
        """Writer, token of the reader, and reader, for both directions."""


class Trial(contextlib.AbstractContextManager["Trial"]):
    """One run of a check: its links, which are closed at the end, and its deadline."""

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
        """Capabilities of the first open link, which depend on the location, or else of the transport."""
        return self._links[0].capabilities if self._links else self.transport.capabilities

    @property
    def seconds_left(self) -> float:
        """Seconds until the deadline, not below 0."""
        return max(0.0, self._ends_at - time.monotonic())

    def truncate(self, data: bytes) -> bytes:
        """Return the data, cut to max_frame."""
        return data[: self.capabilities.max_frame]

    def bind(self, location: Location | None = None) -> LinkEnd:
        """Open a server's end, by default at the location of this run."""
        return self._track(self.transport.bind(location or self.location))

    def connect(self, location: Location) -> LinkEnd:
        """Open a client's end to the location of a server's link."""
        return self._track(self.transport.connect(self.harness.reach(location, breakable=self.breakable)))

    def open_pair(self, location: Location | None = None) -> LinkPair:
        """Return a server and a client that have exchanged one frame in each direction."""
        server = self.bind(location)
        client = self.connect(server.link.location)
        return LinkPair(server, client, self.exchange_greetings(server, client))

    def free_location(self) -> Location:
        """Return a location without a server, whose port does not change when a server is bound to it."""
        if self.location.port != 0:
            return self.location
        # Bind once, to have the system choose a port. Another program could take it before its use: that is rare.
        probe = self.transport.bind(self.location)
        probe.close(0.0)
        return probe.location

    def close_end(self, end: LinkEnd, linger: float) -> None:
        """Close an end before the run is over."""
        self._links.remove(end.link)
        end.link.close(linger)

    def __exit__(self, *_: object) -> None:
        try:
            for link in reversed(self._links):
                # A check that failed may have left the link to a thread of in_thread().
                link.owner = threading.get_ident()
                link.close(0.0)
        finally:
            self.harness.finish()

    def _track(self, link: Link) -> LinkEnd:
        self._links.append(link)
        return LinkEnd(link)

    def poll(self, *ends: LinkEnd) -> None:
        """Record the arrivals of each end. If there are none, wait a little on each."""
        moved = [end.drain() for end in ends]
        # One thread cannot wait on several links, so idle links are waited on in turn, each for a short time.
        if not any(moved):
            for end in ends:
                end.link.wait(POLL_S)

    def wait_until(self, fact: Callable[[], object], what: str, *ends: LinkEnd) -> None:
        """Poll the ends until ``fact()`` holds. Raises Violation at the deadline."""
        while not fact():
            expect(self.seconds_left, f"not within {self.deadline} s: {what}")
            self.poll(*ends)

    def send(self, end: LinkEnd, peer: Peer, data: bytes, *ends: LinkEnd) -> None:
        """Send one frame, and poll ``ends`` until it is accepted."""

        def accepted() -> bool:
            result = end.link.send(peer, data)
            # A client may reconnect to its server, but a server's token of a client never becomes valid again.
            gone = result is Sent.GONE and peer != SERVER and any(down.peer == peer for down in end.downs)
            expect(not gone, f"the connection ended: {end.losses}")
            return result is Sent.ACCEPTED

        self.wait_until(accepted, f"send accepts a frame of {len(data)} bytes", *(ends or (end,)))

    def send_both_ways(self, pair: LinkPair, data: bytes) -> None:
        """Send one frame in each direction."""
        for writer, to, _ in pair.directions:
            self.send(writer, to, data, *pair.ends)

    def expect_received(self, end: LinkEnd, sent: Sequence[bytes], *ends: LinkEnd) -> None:
        """Poll until an end has received all the frames sent, or some of them and the report of a loss."""
        quiet_at = time.monotonic() + self.harness.patience
        lossy = self.capabilities.lossy

        def arrived() -> bool:
            return len(end.frames) >= len(sent) or bool(end.losses) or (lossy and time.monotonic() > quiet_at)

        try:
            self.wait_until(arrived, f"{len(sent)} frames arrive", *(ends or (end,)))
        except Violation as error:
            raise Violation(f"{error}; {len(end.frames)} arrived, and no Down or Gap was reported") from None
        # Once more, to record a frame that arrives although it was not sent, or was sent only once.
        self.poll(*(ends or (end,)))
        expect_frames(end.frames, sent, lossy=lossy or bool(end.losses))

    def exchange_greetings(self, server: LinkEnd, client: LinkEnd) -> Peer:
        """Exchange one frame in each direction, discard both, and return the server's token of the client."""
        self.wait_until(lambda: client.ups, "the client reports Up", server, client)
        number = next(_greetings)
        peer = self._greet(client, SERVER, b"hello? %d" % number, server)
        self._greet(server, peer, b"hello! %d" % number, client)
        for end in (server, client):
            end.discard_frames()
        return peer

    def _greet(self, writer: LinkEnd, to: Peer, data: bytes, reader: LinkEnd) -> Peer:
        """Send a frame until it arrives, repeatedly only if the transport may lose it; return its token."""
        self.send(writer, to, data, writer, reader)
        lossy = self.capabilities.lossy

        def arrived() -> bool:
            # Only over a lossy transport is a frame sent again: elsewhere a repeated greeting would hide a loss.
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
        """Run ``call`` in another thread, which owns the links of the ends. Raise its error when the block ends."""
        caught = ErrorRecorder()

        def run() -> None:
            with caught:
                # The starting thread does not use these links until this one has ended: no two owners at a time.
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

    def run_in_thread(self, call: Callable[[], object], *ends: LinkEnd) -> None:
        """Run ``call`` in another thread, and wait for its return."""
        with self.in_thread(call, *ends):
            pass
