"""Queues over ZeroMQ: full is full, for one peer alone, and what they held is lost with a Down."""

from __future__ import annotations

import os
import signal

import pytest
from links import Pair, drain, frames, losses, meet, put, transport_of, turn, until
from processes import SERVING, another_process, said
from zmq_strangers import BIG, TCP

from remit import Location
from remit.transport import SERVER, Arrival, Down, Frame, Link, Sent, Up


def filled(link: Link, to: object) -> int:
    """Send until the link stays full though it is given a few moments; return how many frames it took."""
    taken = refused = 0
    while refused < 5:
        if link.send(to, b"%06d" % taken + bytes(BIG)) is Sent.ACCEPTED:
            taken, refused = taken + 1, 0
            assert taken < 1000, "the queue has no bound"
        else:
            refused += 1
            link.wait(0.05)
    return taken


@pytest.mark.parametrize("towards", ["server", "client"])
def test_a_reader_that_does_not_read_fills_the_queue_and_gets_all_of_it_later(place: Location, towards: str) -> None:
    with Pair(Location(place.url, hwm=4)) as pair:
        peer = pair.meet()
        writer, to = (pair.client, SERVER) if towards == "server" else (pair.server, peer)
        kept = pair.at_server if towards == "server" else pair.at_client
        taken = filled(writer, to)
        assert taken >= 4
        pair.until(lambda: len(frames(kept)) == taken)
        put(writer, to, b"%06d" % taken, pair.turn)
        pair.until(lambda: len(frames(kept)) == taken + 1)
        assert [int(frame[:6]) for frame in frames(kept)] == list(range(taken + 1))
        assert not losses(kept)


def test_a_slow_client_does_not_hold_up_another(place: Location) -> None:
    with Pair(Location(place.url, hwm=4)) as pair:
        slow = pair.meet()
        other, kept = pair.transport.connect(pair.location), list[Arrival]()
        quick = meet((pair.server, list[Arrival]()), (other, kept))
        filled(pair.server, slow)
        assert pair.server.send(quick, b"past the queue") is Sent.ACCEPTED
        until(lambda: frames(kept), lambda: turn((other, kept)))
        assert frames(kept) == [b"past the queue"]
        other.close(0.0)


def test_frames_that_a_dead_server_was_never_given_are_gone_with_a_down(place: Location) -> None:
    """A DEALER drops at the disconnect what it had taken; its successor gets what is sent after Up and nothing else."""
    with another_process(SERVING, Location(place.url, hwm=4)) as process:
        location = Location(said(process))
        transport = transport_of(location)
        client, at_client, at_server = transport.connect(location), list[Arrival](), list[Arrival]()
        until(lambda: at_client, lambda: turn((client, at_client)))
        assert filled(client, SERVER) >= 4
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        until(lambda: losses(at_client), lambda: turn((client, at_client)))
        assert [type(arrival) for arrival in at_client] == [Up, Down]
        server = transport.bind(location)
        until(lambda: len(at_client) == 3, lambda: turn((server, at_server), (client, at_client)))
        put(client, SERVER, b"after Up", lambda: turn((server, at_server), (client, at_client)))
        until(lambda: frames(at_server), lambda: turn((server, at_server), (client, at_client)))
        assert frames(at_server) == [b"after Up"]
        client.close(0.0)
        server.close(0.0)


CLIENT = """
from links import put, transport_of, turn
from remit import Location
from remit.transport import SERVER
location = Location(sys.argv[1])
client = transport_of(location).connect(location)
put(client, SERVER, b"hello", lambda: turn((client, [])))
print("sent", flush=True)
sys.stdin.read()
client.close(0.0)
"""


def test_a_killed_client_is_noticed_once_by_sending(place: Location) -> None:
    server = transport_of(place).bind(place)
    arrivals: list[Arrival] = []
    with another_process(CLIENT, server.location) as process:
        until(lambda: frames(arrivals), lambda: turn((server, arrivals)))
        peer = arrivals[0].peer  # type: ignore[union-attr]
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        until(lambda: server.send(peer, b"still there?") is Sent.GONE, lambda: turn((server, arrivals)))
        assert server.send(peer, b"still there?") is Sent.GONE
        drain(server, arrivals)
        assert [type(arrival) for arrival in arrivals] == [Up, Frame, Down]
        assert arrivals[-1].peer == peer  # type: ignore[union-attr]
    server.close(0.0)


def test_a_server_that_stands_still_is_dead_and_one_that_is_only_slow_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody ticks either of the two; but ZeroMQ's own thread of the slow one answers."""
    monkeypatch.setattr("remit_zeromq.transport.HEARTBEAT_MS", 100)
    monkeypatch.setattr("remit_zeromq.transport.HEARTBEAT_TIMEOUT_MS", 1000)
    with another_process(SERVING, TCP) as still, another_process(SERVING, TCP) as slow:
        ends = [(transport_of(TCP).connect(Location(said(process))), list[Arrival]()) for process in (still, slow)]
        (_, at_still), (_, at_slow) = ends
        until(lambda: at_still and at_slow, lambda: turn(*ends))
        os.kill(still.pid, signal.SIGSTOP)
        until(lambda: losses(at_still), lambda: turn(*ends))
        assert at_slow == [Up(SERVER)]
        os.kill(still.pid, signal.SIGCONT)
        until(lambda: len(at_still) == 3, lambda: turn(*ends))
        for client, _ in ends:
            client.close(0.0)
