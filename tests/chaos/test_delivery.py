"""Chaos around every transport: frames are spoiled as asked, and the ends make up for all of it."""

from __future__ import annotations

import pytest
from links import Pair, frames, put
from stationery import outcome
from waiting import tick_until

from remit import Client, Location, Server
from remit.event import Sender
from remit.transport import SERVER

EVENTS = 2000
BURST = 100
"""Events between two ticks: there are many frames to spoil."""
STORM = {"seed": 11, "loss": 0.2, "duplication": 0.1, "reorder": 0.05, "delay": "1ms", "cut": 0.005}
PATIENCE = 50.0
"""Seconds: at such a loss some wait for their turn to be asked again several times."""
BRISK = {"heartbeat": "300ms", "linger": "20s"}
"""A connection that was cut is noticed soon."""


def chaotic(location: Location, **options: object) -> Location:
    return location.replace(
        scheme=f"chaos+{location.scheme}",
        options=dict(location.options) | {name: str(value) for name, value in options.items()},
    )


@pytest.fixture
def storm(location: Location) -> Location:
    return chaotic(location, **STORM, **BRISK)


@pytest.mark.timeout(120)
def test_all_events_reach_the_server_once_and_in_order(storm: Location) -> None:
    heard: list[int] = []
    with Server(storm) as server, Client(server.location) as client:
        server.add_listener("n", heard.append)
        for number in range(EVENTS):
            client.emit("n", number)
            if number % BURST == 0:
                server.tick()
                server.wait(0.001)
        tick_until(server, lambda: len(heard) >= EVENTS and client.stats()["unconfirmed"] == 0, PATIENCE)
        assert client.flush()
    assert heard == list(range(EVENTS))


@pytest.mark.timeout(120)
def test_all_events_reach_the_client_once_and_in_order(storm: Location) -> None:
    heard: list[int] = []
    senders: list[Sender] = []
    with Server(storm) as server, Client(server.location) as client:
        client.add_listener("n", heard.append)
        server.add_listener("here", lambda event: senders.append(event.sender), pass_event=True)
        client.emit("here")
        tick_until(server, lambda: senders, PATIENCE)
        for number in range(EVENTS):
            senders[0].emit("n", number)
            if number % BURST == 0:
                server.tick()
                server.wait(0.001)
        tick_until(server, lambda: len(heard) >= EVENTS, PATIENCE)
    assert heard == list(range(EVENTS))


def test_faults_on_a_real_wire(location: Location) -> None:
    with Pair(chaotic(location, seed=3, loss=0.3, duplication=0.3)) as pair:
        put(pair.client, SERVER, b"first", pair.turn)
        for number in range(400):
            put(pair.client, SERVER, b"%d" % number, pair.turn)
        put(pair.client, SERVER, b"a" * 10, pair.turn)
        expected = outcome("connect", "seed=3&loss=0.3&duplication=0.3")
        pair.until(lambda: len(frames(pair.at_server)) > 200)
        assert len(set(expected)) < 400
        assert len(set(frames(pair.at_server))) < 400
