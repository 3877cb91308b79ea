"""Neighbours: both ends in one process, over ZeroMQ."""

from __future__ import annotations

import threading
from functools import partial

import pytest
from links import DEADLINE, LONG, Pair, drain, frames, in_time, losses, meet, transport_of, turn, until
from zmq_strangers import undisturbed

from remit import Location
from remit.errors import LocationInUse
from remit.transport import SERVER, Arrival, Down, Frame, Sent, Up


def test_neighbours_meet_and_meet_again(within: Location) -> None:
    """ZeroMQ would queue for a server that is not there, and never find one that came back."""
    transport = transport_of(within)
    client = transport.connect(within)
    assert client.send(SERVER, b"anybody?") is Sent.GONE
    for _ in range(3):
        at_server, at_client = list[Arrival](), list[Arrival]()
        server = transport.bind(within)
        with pytest.raises(LocationInUse):
            transport.bind(within)
        peer = meet((server, at_server), (client, at_client))
        assert server.send(peer, b"last words") is Sent.ACCEPTED
        server.close(0.0)
        in_time(lambda: until(lambda: losses(at_client), lambda: turn((client, at_client))), client)  # noqa: B023
        assert frames(at_client) == [b"last words"]
        assert [type(arrival) for arrival in at_client] == [Up, Frame, Down]
        assert client.send(SERVER, b"too late") is Sent.GONE
    client.close(0.0)


def test_a_neighbour_that_waits_hears_its_server_come_and_go(within: Location) -> None:
    transport = transport_of(within)
    client = transport.connect(within)
    arrivals: list[Arrival] = []

    def hear(count: int) -> None:
        while len(arrivals) < count:
            client.wait(LONG)
            drain(client, arrivals)

    for count in (2, 4):
        waiting = threading.Thread(target=in_time, args=(partial(hear, count - 1), client))
        waiting.start()
        server = transport.bind(within)
        waiting.join(DEADLINE)
        waiting = threading.Thread(target=in_time, args=(partial(hear, count), client))
        waiting.start()
        server.close(0.0)
        waiting.join(DEADLINE)
    client.owner = threading.get_ident()
    assert [type(arrival) for arrival in arrivals] == [Up, Down] * 2
    client.close(0.0)


def test_a_neighbour_that_finds_its_server_gone_finds_the_next(within: Location) -> None:
    transport = transport_of(within)
    client = transport.connect(within)
    for _ in range(3):
        server = transport.bind(within)
        arrivals: list[Arrival] = []
        until(lambda: arrivals, lambda: turn((client, arrivals)))  # noqa: B023
        server.close(0.0)
        client.wait(LONG)  # This call, not `receive`, finds that the connection has ended.
        drain(client, arrivals)
        assert [type(arrival) for arrival in arrivals] == [Up, Down]
    client.close(0.0)


def test_neighbours_of_another_name_are_strangers(within: Location) -> None:
    with Pair(within) as pair, Pair(Location(within.url + "/other")) as other:
        pair.meet()
        other.meet()
        undisturbed(pair)
        undisturbed(other)
