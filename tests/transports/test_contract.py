"""The contract of `remit.transport`, line by line, over every transport, on bare links."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from links import DEADLINE, LONG, Pair, drain, frames, in_time, losses, meet, transport_of, turn, until
from waiting import wait_until

from remit import Location
from remit.errors import FrameTooLarge, LinkClosed, LocationInUse, WrongThreadError
from remit.transport import SERVER, Arrival, Down, Frame, Gap, Link, Peer, Sent, Up, Waker

CHUNK = bytes(range(256)) * 64
"""One frame of those that fill a queue: 16 KiB."""
PLENTY = 64 * 1024 * 1024
"""Bytes after which a queue that is still not full has no bound."""


@pytest.fixture
def pair(location: Location) -> Iterator[Pair]:
    with Pair(location) as pair:
        yield pair


# -- frames ----------------------------------------------------------------------------------------------------


def test_frames_pass_both_ways(pair: Pair) -> None:
    pair.meet()
    pair.to_server(b"\x00up\xff")
    pair.to_client(b"\x00down\xff")
    pair.until(lambda: frames(pair.at_server) and frames(pair.at_client))
    assert frames(pair.at_server) == [b"\x00up\xff"]
    assert frames(pair.at_client) == [b"\x00down\xff"]


def test_frames_arrive_in_order(pair: Pair) -> None:
    pair.meet()
    numbers = [b"%d" % number for number in range(2000)]
    for number in numbers:
        pair.to_server(number)
        pair.to_client(number)
    pair.until(lambda: len(frames(pair.at_server)) == len(frames(pair.at_client)) == len(numbers))
    assert frames(pair.at_server) == numbers
    assert frames(pair.at_client) == numbers


@pytest.mark.parametrize("size", [1, 125, 1000, 65_535, 65_536, 300_000, 1_048_000])
def test_frames_arrive_whole(pair: Pair, size: int) -> None:
    assert pair.client.capabilities.max_frame >= 1 << 20
    data = os.urandom(size)
    pair.meet()
    pair.to_server(data)
    pair.to_client(data)
    pair.until(lambda: frames(pair.at_server) and frames(pair.at_client))
    assert frames(pair.at_server) == [data]
    assert frames(pair.at_client) == [data]


def test_a_server_tells_its_clients_apart(location: Location) -> None:
    with Pair(location) as pair:
        first = pair.meet()
        other = pair.transport.connect(pair.location)
        kept: list[Arrival] = []
        second = meet((pair.server, pair.at_server), (other, kept))
        assert second != first
        until(lambda: pair.server.send(second, b"for the second") is Sent.ACCEPTED, pair.turn)
        pair.to_client(b"for the first")
        ends = (pair.server, pair.at_server), (pair.client, pair.at_client), (other, kept)
        until(lambda: frames(kept) and frames(pair.at_client), lambda: turn(*ends))
        assert frames(kept) == [b"for the second"]
        assert frames(pair.at_client) == [b"for the first"]
        other.close(0.0)


@pytest.mark.parametrize("towards", ["server", "client"])
def test_a_burst_at_an_idle_reader_is_taken_or_refused_but_not_lost(pair: Pair, towards: str) -> None:
    peer = pair.meet()
    writer, to = (pair.client, SERVER) if towards == "server" else (pair.server, peer)
    reader, kept = (pair.server, pair.at_server) if towards == "server" else (pair.client, pair.at_client)
    other_kept = pair.at_client if towards == "server" else pair.at_server
    taken = []
    for number in range(600):
        data = b"%d" % number + bytes(200)
        if writer.send(to, data) is Sent.ACCEPTED:
            taken.append(data)
    assert taken
    until(lambda: len(frames(kept)) >= len(taken) or losses(kept), lambda: turn((reader, kept), (writer, other_kept)))
    if not losses(kept) and not pair.transport.capabilities.lossy:
        assert frames(kept) == taken


def test_a_frame_that_is_too_large_never_touches_the_wire(pair: Pair) -> None:
    peer = pair.meet()
    oversize = bytes(pair.client.capabilities.max_frame + 1)
    with pytest.raises(FrameTooLarge, match="max_frame"):
        pair.client.send(SERVER, oversize)
    with pytest.raises(FrameTooLarge, match="max_frame"):
        pair.server.send(peer, oversize)
    pair.to_server(b"fits")
    pair.to_client(b"fits")
    pair.until(lambda: frames(pair.at_server) and frames(pair.at_client))
    assert frames(pair.at_server) == frames(pair.at_client) == [b"fits"]
    assert not losses(pair.at_server) + losses(pair.at_client)


def fill(writer: Link, to: Peer, limit: int) -> tuple[int, Sent]:
    """Send until a frame is refused and, after a moment for the backend to make room, refused again."""
    for taken in range(limit):
        if writer.send(to, CHUNK) is not Sent.ACCEPTED:
            writer.wait(0.05)
            if (said := writer.send(to, CHUNK)) is not Sent.ACCEPTED:
                return taken, said
    return limit, Sent.ACCEPTED


@pytest.mark.parametrize("towards", ["server", "client"])
def test_a_full_queue_is_said_and_moves_on_when_read(pair: Pair, towards: str) -> None:
    peer = pair.meet()
    writer, to = (pair.client, SERVER) if towards == "server" else (pair.server, peer)
    reader, kept = (pair.server, pair.at_server) if towards == "server" else (pair.client, pair.at_client)
    window = pair.client.capabilities.window
    limit = (PLENTY if window is None else window) // len(CHUNK)
    taken, said = fill(writer, to, limit)
    if window is None:
        assert said is Sent.FULL, f"{taken} frames of {len(CHUNK)} bytes taken without a reader: the queue has no bound"
    if said is Sent.FULL:
        refused, accepted = threading.Event(), threading.Event()

        def write() -> None:
            while writer.send(to, CHUNK) is Sent.FULL:
                refused.set()
                writer.wait(LONG)
            refused.set()
            accepted.set()

        def read() -> None:
            assert refused.wait(DEADLINE)
            until(accepted.is_set, lambda: turn((reader, kept)))

        writing = threading.Thread(target=in_time, args=(write, writer))
        writing.start()
        in_time(read, reader)
        writing.join(DEADLINE)
        writer.owner = threading.get_ident()
        taken += 1
    other_kept = pair.at_client if towards == "server" else pair.at_server
    until(lambda: len(frames(kept)) >= taken or losses(kept), lambda: turn((reader, kept), (writer, other_kept)))
    if not losses(kept):
        assert frames(kept) == [CHUNK] * taken


# -- peers -----------------------------------------------------------------------------------------------------


def place(location: Location) -> Location:
    """Return a location at which nobody is now but which stays the same when somebody binds it."""
    if location.port != 0:
        return location
    probe = transport_of(location).bind(location)
    probe.close(0.0)
    return probe.location


def test_nobody_there_is_gone(location: Location) -> None:
    client = transport_of(location).connect(place(location))
    assert client.receive() is None
    assert client.send(SERVER, b"anybody?") is Sent.GONE
    client.close(0.0)


def test_an_unknown_peer_is_gone(pair: Pair) -> None:
    pair.meet()
    assert pair.server.send("nobody", b"anybody?") is Sent.GONE


def test_a_client_may_come_before_its_server(location: Location) -> None:
    location = place(location)
    transport = transport_of(location)
    client, at_client, at_server = transport.connect(location), list[Arrival](), list[Arrival]()
    turn((client, at_client))
    server = transport.bind(location)
    meet((server, at_server), (client, at_client))
    assert Up(SERVER) in [arrival._replace(credentials=None) for arrival in at_client if isinstance(arrival, Up)]
    client.close(0.0)
    server.close(0.0)


def goes(client: Link, kept: list[Arrival]) -> None:
    """Wait until a client has noticed that its server is gone; asking is allowed."""

    def ask() -> None:
        if not losses(kept):
            client.send(SERVER, b"still there?")
        turn((client, kept))

    until(lambda: Down in map(type, kept), ask)


def test_a_client_sees_its_server_go_and_return(location: Location) -> None:
    location = place(location)
    transport = transport_of(location)
    at_client: list[Arrival] = []
    client = transport.connect(location)
    for _ in range(3):
        at_client.clear()
        at_server: list[Arrival] = []
        server = transport.bind(location)
        meet((server, at_server), (client, at_client))
        server.close(1.0)
        goes(client, at_client)
        assert [type(arrival) for arrival in at_client if not isinstance(arrival, Gap)] == [Up, Down]
        assert client.send(SERVER, b"too late") is Sent.GONE
    client.close(0.0)


def test_a_client_that_goes_is_gone(pair: Pair) -> None:
    peer = pair.meet()
    pair.client.close(1.0)
    if pair.transport.capabilities.sees_peers:
        end = (pair.server, pair.at_server)
        until(lambda: losses(pair.at_server), lambda: turn(end))
        downs = [arrival for arrival in pair.at_server if isinstance(arrival, Down)]
        assert [down.peer for down in downs] == [peer]
        assert downs[0].why
    until(
        lambda: pair.server.send(peer, b"still there?") is Sent.GONE,
        lambda: turn((pair.server, pair.at_server)),
    )


def test_up_comes_first_and_down_last(pair: Pair) -> None:
    peer = pair.meet()
    for number in range(10):
        pair.to_server(b"%d" % number)
    pair.client.close(DEADLINE)
    sees_peers = pair.transport.capabilities.sees_peers
    until(
        lambda: losses(pair.at_server) if sees_peers else len(frames(pair.at_server)) == 10,
        lambda: turn((pair.server, pair.at_server)),
    )
    arrivals = [arrival for arrival in pair.at_server if not isinstance(arrival, Gap)]
    kinds = [type(arrival) for arrival in arrivals if sees_peers or isinstance(arrival, Frame)]
    assert kinds == ([Up, *[Frame] * 10, Down] if sees_peers else [Frame] * 10)
    assert {arrival.peer for arrival in arrivals} == {peer}


def test_a_token_is_never_used_again(pair: Pair) -> None:
    tokens = [pair.meet()]
    pair.client.close(0.0)
    for _ in range(5):
        other = pair.transport.connect(pair.location)
        fresh: list[Arrival] = []
        tokens.append(meet((pair.server, fresh), (other, [])))
        other.close(0.0)
    assert len(set(tokens)) == len(tokens)


def test_what_was_accepted_before_close_arrives(pair: Pair) -> None:
    pair.meet()
    for number in range(50):
        pair.to_server(b"%d" % number)
    in_time(lambda: pair.client.close(DEADLINE), pair.client)
    until(
        lambda: len(frames(pair.at_server)) >= 50 or losses(pair.at_server),
        lambda: turn((pair.server, pair.at_server)),
    )
    got = frames(pair.at_server)
    assert got == [b"%d" % number for number in range(len(got))]
    if not losses(pair.at_server):
        assert len(got) == 50


def test_a_second_server_is_refused(pair: Pair) -> None:
    with pytest.raises(LocationInUse):
        in_time(lambda: pair.transport.bind(pair.location))
    pair.meet()
    pair.to_server(b"undisturbed")
    pair.until(lambda: frames(pair.at_server))
    assert frames(pair.at_server) == [b"undisturbed"]


def test_a_location_is_free_after_close(location: Location) -> None:
    location = place(location)
    for _ in range(3):
        with Pair(location) as pair:
            assert pair.location == location
            pair.meet()


def test_port_0_becomes_a_real_one(location: Location) -> None:
    with Pair(location) as pair:
        assert pair.location.port != 0
        assert pair.location.scheme == location.scheme


# -- whose link ------------------------------------------------------------------------------------------------


def test_another_thread_is_refused(pair: Pair) -> None:
    peer = pair.meet()
    for link, to in ((pair.server, peer), (pair.client, SERVER)):
        for call in (link.receive, partial(link.send, to, b""), partial(link.wait, 0.0)):
            with pytest.raises(WrongThreadError):
                in_time(call)


def test_a_link_is_handed_over_by_its_owner(pair: Pair) -> None:
    pair.meet()
    in_time(lambda: pair.to_server(b"from another thread"), pair.server, pair.client)
    pair.until(lambda: frames(pair.at_server))
    assert frames(pair.at_server) == [b"from another thread"]


def test_a_forked_child_is_refused_and_harmless(location: Location) -> None:
    script = Path(__file__).parents[1] / "support" / "forking.py"
    ran = subprocess.run(
        [sys.executable, script, location.url], capture_output=True, text=True, timeout=2 * DEADLINE, check=False
    )
    assert (ran.stdout, ran.returncode) == ("ok\n", 0), ran.stderr


# -- waiting ---------------------------------------------------------------------------------------------------


def test_wait_ends_by_itself(pair: Pair) -> None:
    pair.meet()
    for link in (pair.server, pair.client):
        in_time(partial(link.wait, 0.0), link)
        in_time(partial(link.wait, 0.05), link)


def awaited(link: Link, kept: list[Arrival], count: int) -> None:
    """Receive one at a time, waiting without a bound before each."""
    while len(frames(kept)) < count:
        link.wait(LONG)
        arrival = link.receive()
        if arrival is not None:
            kept.append(arrival)


@pytest.mark.parametrize("towards", ["server", "client"])
def test_a_frame_ends_a_wait(pair: Pair, towards: str) -> None:
    pair.meet()
    reader, kept = (pair.server, pair.at_server) if towards == "server" else (pair.client, pair.at_client)
    writer, to = (pair.client, SERVER) if towards == "server" else (pair.server, pair.peer)
    for number in range(5):
        waiting = threading.Thread(target=in_time, args=(partial(awaited, reader, kept, number + 1), reader))
        waiting.start()
        in_time(lambda: until(lambda: writer.send(to, b"wake up") is Sent.ACCEPTED, lambda: writer.wait(0.01)), writer)
        waiting.join(DEADLINE)
        assert len(frames(kept)) == number + 1


@pytest.mark.parametrize("towards", ["server", "client"])
def test_wait_is_level_triggered(pair: Pair, towards: str) -> None:
    """Three frames wait; after each that is received, the next wait returns at once."""
    pair.meet()
    reader, kept = (pair.server, pair.at_server) if towards == "server" else (pair.client, pair.at_client)
    put = pair.to_server if towards == "server" else pair.to_client
    for data in (b"1", b"2", b"3"):
        put(data)
    in_time(lambda: awaited(reader, kept, 3), reader)
    assert frames(kept) == [b"1", b"2", b"3"]


def test_a_waker_ends_a_wait(pair: Pair) -> None:
    pair.meet()
    waker = Waker()
    for link in (pair.server, pair.client):
        woken = threading.Event()

        def sleep(link: Link = link, woken: threading.Event = woken) -> None:
            while not woken.is_set():
                link.wait(LONG, waker)
                link.receive()

        sleeping = threading.Thread(target=in_time, args=(sleep, link))
        sleeping.start()
        woken.set()
        waker.wake()
        sleeping.join(DEADLINE)
        assert not sleeping.is_alive()
        link.owner = threading.get_ident()
        in_time(partial(link.wait, LONG, waker), link)
        waker.clear()
    waker.close()


# -- the end ---------------------------------------------------------------------------------------------------


def test_a_closed_link_says_so_and_closes_twice(pair: Pair) -> None:
    pair.meet()
    for link in (pair.client, pair.server):
        link.close(0.0)
        link.close(1.0)
        for call in (link.receive, partial(link.send, SERVER, b""), partial(link.wait, 0.0)):
            with pytest.raises(LinkClosed):
                call()


@pytest.mark.parametrize("linger", [0.0, 0.2])
def test_close_is_bounded_though_nobody_reads(pair: Pair, linger: float) -> None:
    peer = pair.meet()
    for link, to in ((pair.client, SERVER), (pair.server, peer)):
        for _ in range(100):
            if link.send(to, CHUNK) is not Sent.ACCEPTED:
                break
    in_time(lambda: pair.client.close(linger), pair.client)
    in_time(lambda: pair.server.close(linger), pair.server)


def test_close_is_bounded_though_nobody_is_there(location: Location) -> None:
    client = transport_of(location).connect(place(location))
    in_time(lambda: client.close(0.2), client)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_descriptor_is_left_behind(location: Location) -> None:
    def cycle() -> None:
        with Pair(location) as pair:
            pair.meet()
            drain(pair.server, [])

    cycle()
    before = descriptors()
    for _ in range(20):
        cycle()
    wait_until(lambda: descriptors() <= before)
