"""Many over nng at once, and descriptors that run out: bounds are kept, and nothing is left behind."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import pytest
from descriptors import few_descriptors, open_descriptors
from links import Pair, frames, losses, transport_of, turn, until
from nng_strangers import (
    ASK,
    TOKEN,
    answered,
    door,
    opened,
    pynng,
    undisturbed,
)
from waiting import wait_until

from remit import Location
from remit.errors import TransportError
from remit.transport import SERVER, Arrival, Frame, Link, Sent, Up

MEMBERS = 100
"""Clients that come at once."""


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_many_come_at_once_and_leave_nothing_behind(place: Location) -> None:
    """A hundred clients: each has a token of its own, hears what is meant for it, and costs nothing once it is gone."""
    with Pair(place) as warm:
        warm.meet()
    before, threads_before = open_descriptors(), threads()
    server = transport_of(place).bind(place)
    at_server: list[Arrival] = []
    ends: list[tuple[Link, list[Arrival]]] = [
        (transport_of(place).connect(server.location), []) for _ in range(MEMBERS)
    ]

    def step() -> None:
        for link, kept in [(server, at_server), *ends]:
            while (arrival := link.receive()) is not None:
                kept.append(arrival)
        server.wait(0.01)

    until(lambda: all(kept for _, kept in ends), step)
    for number, (link, _) in enumerate(ends):
        assert link.send(SERVER, b"%d" % number) is Sent.ACCEPTED
    until(lambda: len(frames(at_server)) == MEMBERS, step)
    callers = {arrival.data: arrival.peer for arrival in at_server if isinstance(arrival, Frame)}
    assert len(set(callers.values())) == MEMBERS
    for data, peer in callers.items():
        assert server.send(peer, b"to " + data) is Sent.ACCEPTED
    until(lambda: all(frames(kept) for _, kept in ends), step)
    assert [frames(kept) for _, kept in ends] == [[b"to %d" % number] for number in range(MEMBERS)]
    for link, _ in ends:
        link.close(0.0)
    until(lambda: len(losses(at_server)) == MEMBERS, lambda: turn((server, at_server)))
    server.close(0.0)
    wait_until(lambda: open_descriptors() <= before)
    assert threads() <= threads_before


def test_what_is_asked_for_at_once_has_a_bound(tcp: Location) -> None:
    """A crowd that asks and never comes costs a bounded number of descriptors."""
    server = transport_of(tcp).bind(tcp)
    before = open_descriptors()
    strangers = [pynng.Req0(dial=door(server.location)) for _ in range(20)]
    connections = open_descriptors() - before
    link: Any = server
    for _ in range(10):
        for stranger in strangers:
            stranger.send(ASK)
        for stranger in strangers:
            answered(stranger, lambda: turn((server, [])))
    unclaimed = len(link.unclaimed)
    assert 100 <= unclaimed <= 128
    assert open_descriptors() - before - connections <= 3 * unclaimed
    for stranger in strangers:
        stranger.close()
    server.close(0.0)


def test_a_server_out_of_descriptors_refuses_and_recovers(place: Location) -> None:
    """With no descriptor left newcomers are told to come again; once there is one, they are let in."""
    with undisturbed(place) as pair, pynng.Req0(dial=door(pair.location)) as lobby:
        before = open_descriptors()
        with few_descriptors(0):
            for _ in range(5):
                lobby.send(ASK)
                assert answered(lobby, pair.turn) == b""
        gc.collect()
        wait_until(lambda: open_descriptors() <= before)
        lobby.send(ASK)
        answer = answered(lobby, pair.turn)
        with opened(pair.location, answer[TOKEN:].decode()) as member:
            member.send(answer[:TOKEN])
            pair.until(lambda: pair.at_server)


def test_a_client_out_of_descriptors_asks_again(place: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has none for the session that it was given, three times, and comes up at the fourth."""
    from remit_nng.link import Channel

    refusals: list[object] = []

    def scarce(*arguments: Any) -> Channel:
        if len(refusals) < 3:
            refusals.append(arguments)
            raise pynng.OutOfFiles("Out of files", 24)
        return Channel(*arguments)

    monkeypatch.setattr("remit_nng.client.Channel", scarce)
    with Pair(place) as pair:
        pair.meet()
        assert len(refusals) == 3
        assert [type(arrival) for arrival in pair.at_client] == [Up]


@pytest.mark.parametrize("verb", ["bind", "connect"])
def test_out_of_descriptors_is_said(place: Location, path: Path, verb: str) -> None:
    with Pair(place) as pair:
        pair.meet()
        other = Location(f"nng+ipc://{path}2") if place.path else place.replace(port=0 if verb == "bind" else 1)
        before = open_descriptors()
        said_by_the_claim = verb == "bind" and place.path
        words = "Too many open files" if said_by_the_claim else "ulimit -n"
        with few_descriptors(0), pytest.raises(TransportError, match=words):
            getattr(pair.transport, verb)(other)
        gc.collect()
        assert open_descriptors() <= before


def test_no_descriptor_passes_to_a_program(place: Location) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    with Pair(place) as pair:
        pair.meet()
        ours = [
            entry for entry in set(Path("/proc/self/fd").iterdir()) - before if entry.exists() or entry.is_symlink()
        ]
        assert len(ours) >= 5
        assert not [entry for entry in ours if os.get_inheritable(int(entry.name))]
