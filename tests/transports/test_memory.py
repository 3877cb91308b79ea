"""What is true of `memory:` alone: threads that meet, a bound in frames, and a fork that nobody crosses."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from functools import partial

import pytest
from links import DEADLINE, Pair, drain, frames, in_time, losses, put, transport_of, turn, until

from remit import Location
from remit.errors import BadLocation
from remit.transport import SERVER, Arrival, Down, Frame, Link, Peer, Sent, Up

_numbers = itertools.count()


@pytest.fixture
def place() -> Location:
    return Location(f"memory://alone-{next(_numbers)}")


@pytest.fixture
def pair(place: Location) -> Iterator[Pair]:
    with Pair(Location(place.url, capacity=8)) as pair:
        pair.meet()
        yield pair


def test_the_bound_is_in_frames_and_for_each_direction(pair: Pair) -> None:
    sent = [pair.client.send(SERVER, b"%d" % number) for number in range(9)]
    assert sent == [Sent.ACCEPTED] * 8 + [Sent.FULL]
    assert pair.server.send(pair.peer, b"back") is Sent.ACCEPTED
    assert pair.server.receive() == Frame(pair.peer, b"0")
    assert pair.client.send(SERVER, b"8") is Sent.ACCEPTED


def test_what_is_sent_is_a_copy(pair: Pair) -> None:
    data = bytearray(b"before")
    assert pair.client.send(SERVER, data) is Sent.ACCEPTED  # type: ignore[arg-type]
    data[:] = b"after!"
    assert pair.server.receive() == Frame(pair.peer, b"before")


def test_a_server_that_came_and_went_unseen_is_gone(place: Location) -> None:
    transport = transport_of(place)
    client = transport.connect(place)
    for _ in range(2):
        transport.bind(place).close(0.0)
    arrivals: list[Arrival] = []
    drain(client, arrivals)
    assert [type(arrival) for arrival in arrivals] == [Up, Down, Up, Down]
    assert client.send(SERVER, b"anybody?") is Sent.GONE
    client.close(0.0)


def test_a_name_is_needed() -> None:
    with pytest.raises(BadLocation, match="memory://events"):
        transport_of(Location("memory://")).bind(Location("memory://"))


def talk(place: Location, numbers: list[bytes], heard: list[list[bytes]]) -> None:
    """As a client: send each number, and keep what comes back."""
    client = transport_of(place).connect(place)
    kept: list[Arrival] = []
    for number in numbers:
        put(client, SERVER, number, lambda: turn((client, kept)))
    until(lambda: len(frames(kept)) == len(numbers), lambda: turn((client, kept)))
    heard.append(frames(kept))
    client.close(0.0)


def echo(server: Link, clients: int) -> None:
    """As the server: send everything back to where it came from until all clients have gone."""
    waiting: dict[Peer, deque[bytes]] = defaultdict(deque)
    gone = 0
    while gone < clients:
        arrivals: list[Arrival] = []
        if not drain(server, arrivals):
            server.wait(DEADLINE)
        gone += len(losses(arrivals))
        for arrival in arrivals:
            if isinstance(arrival, Frame):
                waiting[arrival.peer].append(arrival.data)
        for peer, queue in waiting.items():
            while queue and server.send(peer, queue[0]) is not Sent.FULL:
                queue.popleft()


def test_many_threads_meet_one_server(place: Location) -> None:
    server = transport_of(place).bind(Location(place.url, capacity=16))
    numbers = [b"%d" % number for number in range(500)]
    heard: list[list[bytes]] = []
    threads = [threading.Thread(target=talk, args=(place, numbers, heard)) for _ in range(4)]
    for thread in threads:
        thread.start()
    in_time(partial(echo, server, len(threads)), server)
    for thread in threads:
        thread.join(DEADLINE)
    server.close(0.0)
    assert heard == [numbers] * len(threads)


FORK = """
import os
from remit import Location
from remit.plugins import find_transport
from remit.transport import SERVER, Sent
place = Location("memory://fork")
transport = find_transport("memory")
server = transport.bind(place)
pid = os.fork()
if not pid:
    client = transport.connect(place)
    own = transport.bind(place)
    assert client.receive().peer == SERVER
    assert client.send(SERVER, b"at home") is Sent.ACCEPTED
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert server.receive() is None
server.close(0.0)
"""


def test_a_forked_child_begins_with_no_names() -> None:
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=DEADLINE)
