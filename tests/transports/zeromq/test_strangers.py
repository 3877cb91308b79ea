"""Strangers over ZeroMQ: odd messages, chosen routing ids, sockets of the wrong kind."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest
from links import DEADLINE, Pair, drain, frames, put, transport_of, turn, until
from zmq_strangers import Raw, dropped, endpoint, script, undisturbed, zmq

from remit import Location
from remit.transport import SERVER, Arrival, Frame, Sent, Up


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32) + b"\x04\xff" * 40,
        b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32),
        bytes(37 * number % 256 for number in range(1, 201)),
        b"",
    ],
    ids=["http", "no-ready", "curve", "noise", "nothing"],
)
def test_whoever_speaks_no_zeromq_is_left_alone(place: Location, garbage: bytes) -> None:
    with Pair(place) as pair:
        pair.meet()
        pair.at_server.clear()
        with contextlib.closing(dialled(pair.location)) as stranger:
            stranger.sendall(garbage)
            stranger.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                while stranger.recv(4096):
                    pass
        undisturbed(pair)


def dialled(location: Location) -> socket.socket:
    family, address = (
        (socket.AF_INET, (location.host, location.port)) if location.port else (socket.AF_UNIX, location.path)
    )
    made = socket.socket(family)
    made.settimeout(DEADLINE)
    made.connect(address)
    return made


def test_messages_of_an_odd_shape_are_dropped_and_counted(place: Location, raw: Raw) -> None:
    with Pair(place) as pair:
        pair.meet()
        pair.at_server.clear()
        dealer = raw.connected(zmq.DEALER, pair.location)
        for parts in ([b"", b"x"], [b"a", b"b", b"c"], [b"", b""], [b"%d" % number for number in range(1000)]):
            dealer.send_multipart(parts)
        raw.connected(zmq.REQ, pair.location).send(b"an answer, please")
        pair.until(lambda: dropped(pair.server) == 5)
        assert pair.at_server == []
        undisturbed(pair)


def test_a_stranger_that_sends_whole_frames_is_a_peer_like_any_other(place: Location, raw: Raw) -> None:
    """What is in them is for the core to judge; after the odd ones a good one still comes through."""
    with Pair(place) as pair:
        peer = pair.meet()
        pair.at_server.clear()
        dealer = raw.connected(zmq.DEALER, pair.location)
        for parts in ([b"odd", b"even"], [b""], [b"\xc1 no MessagePack"]):
            dealer.send_multipart(parts)
        pair.until(lambda: len(pair.at_server) == 3)
        up, *rest = pair.at_server
        assert isinstance(up, Up)
        assert up.peer != peer
        assert rest == [Frame(up.peer, b""), Frame(up.peer, b"\xc1 no MessagePack")]
        assert pair.server.send(up.peer, b"heard") is Sent.ACCEPTED
        assert dealer.recv() == b"heard"


def test_a_publisher_is_refused_by_the_handshake(place: Location, raw: Raw) -> None:
    with Pair(place) as pair:
        pair.meet()
        pair.at_server.clear()
        publisher = raw.socket(zmq.PUB)
        refused = raw.reports(publisher, zmq.EVENT_DISCONNECTED)
        publisher.connect(endpoint(pair.location))
        assert refused.poll(DEADLINE * 1000)
        publisher.send(b"news")
        undisturbed(pair)


def test_a_frame_over_the_limit_ends_its_connection_alone(place: Location, raw: Raw) -> None:
    with Pair(Location(place.url, max_frame="64KiB")) as pair:
        pair.meet()
        pair.at_server.clear()
        dealer = raw.connected(zmq.DEALER, pair.location)
        refused = raw.reports(dealer, zmq.EVENT_DISCONNECTED)
        dealer.send(bytes(1 << 20))
        assert refused.poll(DEADLINE * 1000)
        assert not drain(pair.server, pair.at_server)
        undisturbed(pair)


def test_a_routing_id_that_a_peer_chose_is_no_token(place: Location, raw: Raw) -> None:
    """It could come back with another connection; ids that ZeroMQ makes cannot."""
    with Pair(place) as pair:
        pair.meet()
        pair.at_server.clear()
        for _ in range(2):
            before = dropped(pair.server)

            def call() -> None:
                """As long as the connection before is not quite gone, ZeroMQ is deaf to this one."""
                chosen = raw.connected(zmq.DEALER, pair.location, routing_id=b"alice")
                chosen.send(b"it is me again")
                pair.server.wait(0.05)
                drain(pair.server, pair.at_server)
                chosen.close()

            until(lambda: dropped(pair.server) > before, call)  # noqa: B023 - both of two messages may arrive late
        assert pair.at_server == []
        undisturbed(pair)


def test_a_second_peer_with_the_routing_id_of_another_is_mute(place: Location, raw: Raw) -> None:
    """Even one that does what ZeroMQ's own sockets refuse to do: to call itself what a server called another."""
    with Pair(place) as pair:
        peer = pair.meet()
        pair.at_server.clear()
        assert isinstance(peer, bytes)
        with contextlib.closing(dialled(pair.location)) as impostor:
            impostor.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
            ready = b"\x05READY" + b"\x0bSocket-Type" + b"\0\0\0\x06DEALER" + b"\x08Identity" + b"\0\0\0\x05" + peer
            impostor.sendall(b"\x04" + bytes([len(ready)]) + ready)
            heard = b""
            while b"ROUTER" not in heard:
                heard += (more := impostor.recv(4096))
                assert more, "it is no ZeroMQ"
            impostor.sendall(b"\x00\x05false" * 10)
            for _ in range(3):
                undisturbed(pair)
                pair.at_server.clear()
                pair.at_client.clear()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_a_client_drops_messages_of_an_odd_shape(place: Location, raw: Raw, short_path: Path) -> None:
    router = raw.socket(zmq.ROUTER)
    location = place.replace(port=free_port()) if place.port is not None else place
    router.bind(endpoint(location))
    client, arrivals = transport_of(location).connect(location), list[Arrival]()
    until(lambda: arrivals, lambda: turn((client, arrivals)))
    put(client, SERVER, b"hello", lambda: turn((client, arrivals)))
    token, data = router.recv_multipart()
    assert data == b"hello"
    for parts in ([b"two", b"parts"], [b"", b""], [b"whole"]):
        router.send_multipart([token, *parts])
    until(lambda: frames(arrivals), lambda: turn((client, arrivals)))
    assert arrivals == [Up(SERVER), Frame(SERVER, b"whole")]
    assert dropped(client) == 2
    client.close(0.0)


def test_a_client_of_a_publisher_never_comes_up(place: Location, raw: Raw) -> None:
    publisher = raw.socket(zmq.PUB)
    location = place.replace(port=free_port()) if place.port is not None else place
    refused = raw.reports(publisher, zmq.EVENT_DISCONNECTED)
    publisher.bind(endpoint(location))
    client, arrivals = transport_of(location).connect(location), list[Arrival]()
    assert refused.poll(DEADLINE * 1000)
    assert not drain(client, arrivals)
    assert client.send(SERVER, b"anybody?") is Sent.GONE
    client.close(0.0)


FLOOD = """
import os, zmq
from links import DEADLINE
from remit_zeromq.context import open_monitor, read_monitor
context = zmq.Context()
flapping, puller, pusher = (context.socket(kind) for kind in (zmq.DEALER, zmq.PULL, zmq.PUSH))
reports = open_monitor(flapping, zmq.EVENT_ALL)
for _ in range(3000):
    flapping.connect("tcp://127.0.0.1:1")
    flapping.disconnect("tcp://127.0.0.1:1")
pusher.connect(f"tcp://127.0.0.1:{puller.bind_to_random_port('tcp://127.0.0.1')}")
pusher.send(b"past all that")
if not puller.poll(DEADLINE / 2 * 1000):
    os._exit(1)
assert sum(1 for _ in read_monitor(reports)) > 2000
flapping.disable_monitor()
reports.close()
context.destroy(linger=0)
print("ok")
"""


def test_reports_that_nobody_reads_stop_nothing() -> None:
    """ZeroMQ's own bound of 2,000 would stop its thread, and closing a link would then stop the process."""
    assert script(FLOOD) == "ok"
