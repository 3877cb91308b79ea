"""Slow readers over nng: full is full, for them alone, and what was accepted leaves before the end."""

from __future__ import annotations

import os
import threading

import pytest
from descriptors import few_descriptors
from links import DEADLINE, LONG, Pair, frames, in_time, meet, read_while_closing, turn, until, waits

from remit import Location
from remit.transport import SERVER, Arrival, Link, Peer, Sent

pytest.importorskip("remit_nng")


def filled(writer: Link, to: Peer) -> int:
    """Send until nothing more is taken, not even after a moment for nng's threads; return how many were taken."""
    taken = refusals = 0
    while refusals < 5:
        if writer.send(to, bytes(10_000)) is Sent.ACCEPTED:
            taken, refusals = taken + 1, 0
        else:
            writer.wait(0.02)
            refusals += 1
    return taken


def test_a_slow_reader_is_full_and_holds_up_nobody(place: Location) -> None:
    with Pair(place) as pair:
        slow = pair.meet()
        other, kept = pair.transport.connect(pair.location), list[Arrival]()
        quick = meet((pair.server, []), (other, kept))
        taken = filled(pair.server, slow)
        for number in range(200):
            until(lambda: pair.server.send(quick, b"past the queue") is Sent.ACCEPTED, lambda: turn((other, kept)))
            until(lambda: len(frames(kept)) == number + 1, lambda: turn((other, kept)))  # noqa: B023
        taken += filled(pair.server, slow)  # the kernel may have made some room
        pair.until(lambda: len(frames(pair.at_client)) == taken)
        pair.to_client(b"room again")
        pair.until(lambda: len(frames(pair.at_client)) == taken + 1)
        other.close(0.0)


def test_a_wait_does_not_spin_for_a_peer_that_nobody_sends_to_any_more(tcp: Location) -> None:
    """Two cases: it stays full; it has room again, which is told once."""
    with Pair(tcp) as pair:
        pair.meet()
        taken = filled(pair.client, SERVER)
        assert waits(pair.client, 0.3) < 20
        until(lambda: len(frames(pair.at_server)) == taken, lambda: turn((pair.server, pair.at_server)))
        assert waits(pair.client, 0.3) < 20


def test_a_writer_without_a_descriptor_is_told_of_room_all_the_same(place: Location) -> None:
    with Pair(place) as pair:
        pair.meet()
        with few_descriptors(0):
            taken = filled(pair.client, SERVER)
            while pair.client.send(SERVER, b"more") is Sent.ACCEPTED:
                taken += 1  # nng's own threads had moved some on
        accepted = threading.Event()

        def write() -> None:
            while pair.client.send(SERVER, b"at last") is Sent.FULL:
                pair.client.wait(LONG)
            accepted.set()

        writing = threading.Thread(target=in_time, args=(write, pair.client))
        writing.start()
        until(accepted.is_set, lambda: turn((pair.server, pair.at_server)))
        writing.join(DEADLINE)
        pair.client.owner = threading.get_ident()
        pair.until(lambda: len(frames(pair.at_server)) == taken + 1)


@pytest.mark.parametrize("towards", ["server", "client"])
def test_close_lingers_for_what_was_accepted(place: Location, towards: str) -> None:
    """The writer closes with its queue full; the reader begins to read only then."""
    with Pair(place) as pair:
        peer = pair.meet()
        writer, to = (pair.client, SERVER) if towards == "server" else (pair.server, peer)
        reader = (pair.server, pair.at_server) if towards == "server" else (pair.client, pair.at_client)
        data = os.urandom(10_000)
        taken = 0
        while writer.send(to, data) is Sent.ACCEPTED:
            taken += 1
        assert read_while_closing(writer, reader) == [data] * taken
