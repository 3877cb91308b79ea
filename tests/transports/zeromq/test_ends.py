"""Ends over ZeroMQ: what has left when a link closes, its threads, its descriptors, and its forks."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

import pytest
from descriptors import few_descriptors, open_descriptors
from links import DEADLINE, Pair, frames, in_time, transport_of, turn, until
from processes import another_process
from threads import of_each_thread
from waiting import wait_until
from zmq_strangers import BIG, Raw, script, undisturbed, zmq

from remit import Location
from remit.errors import TransportError
from remit.transport import SERVER, Arrival, Down, Frame, Sent, Up


def test_importing_the_plugin_imports_no_zeromq() -> None:
    code = "import remit_zeromq; print(remit_zeromq.remit_transport('unix'), 'zmq' in sys.modules)"
    assert script(code) == "None False"


def test_a_client_lingers_until_all_has_left(place: Location) -> None:
    """More than the kernel holds waits for a reader who begins only after the writer has begun to close."""
    with Pair(place) as pair:
        pair.meet()
        for number in range(300):
            assert pair.client.send(SERVER, b"%06d" % number + bytes(BIG)) is Sent.ACCEPTED
        closing = threading.Thread(target=in_time, args=(partial(pair.client.close, DEADLINE), pair.client))
        closing.start()
        until(lambda: len(frames(pair.at_server)) == 300, lambda: turn((pair.server, pair.at_server)))
        closing.join(DEADLINE)
        assert [int(frame[:6]) for frame in frames(pair.at_server)] == list(range(300))


def test_a_server_lingers_until_all_has_left(place: Location, raw: Raw) -> None:
    """Its place is free before; an unbind would have ended the connections there and then."""
    server = transport_of(place).bind(place)
    dealer, arrivals = raw.connected(zmq.DEALER, server.location), list[Arrival]()
    dealer.send(b"hello")
    until(lambda: frames(arrivals), lambda: turn((server, arrivals)))
    peer = arrivals[0].peer  # type: ignore[union-attr]
    for number in range(300):
        assert server.send(peer, b"%06d" % number + bytes(BIG)) is Sent.ACCEPTED
    closing = threading.Thread(target=in_time, args=(partial(server.close, DEADLINE), server))
    closing.start()
    assert [int(dealer.recv()[:6]) for _ in range(300)] == list(range(300))
    closing.join(DEADLINE)


def test_what_a_client_has_not_read_when_its_server_goes_is_gone_with_a_down(place: Location) -> None:
    """ZeroMQ takes back from a DEALER with IMMEDIATE what has arrived: a prefix is read, and Down comes last."""
    with Pair(place) as pair:
        peer = pair.meet()
        for number in range(300):
            assert pair.server.send(peer, b"%06d" % number + bytes(BIG)) is Sent.ACCEPTED
        in_time(lambda: pair.server.close(1.0), pair.server)
        until(lambda: Down in map(type, pair.at_client), lambda: turn((pair.client, pair.at_client)))
        numbers = [int(frame[:6]) for frame in frames(pair.at_client)]
        assert numbers == list(range(len(numbers)))
        assert [type(arrival) for arrival in pair.at_client] == [Up, *[Frame] * len(numbers), Down]


LEAVING = """
from links import put, transport_of, turn
from remit import Location
from remit.transport import SERVER
location = Location(sys.argv[1])
client = transport_of(location).connect(location)
for number in range(300):
    put(client, SERVER, b"%06d" % number + bytes(100_000), lambda: turn((client, [])))
client.close(20.0)
"""


def test_a_process_that_exits_after_close_loses_nothing(place: Location) -> None:
    """ZeroMQ writes in a thread that ends with the process: the last close waits for it."""
    server = transport_of(place).bind(place)
    arrivals: list[Arrival] = []
    with another_process(LEAVING, server.location) as process:
        until(lambda: process.poll() is not None, lambda: turn((server, arrivals)))
        assert process.returncode == 0
    until(lambda: len(frames(arrivals)) == 300, lambda: turn((server, arrivals)))
    assert [int(frame[:6]) for frame in frames(arrivals)] == list(range(300))
    server.close(0.0)


CLOSING = """
import threading
from remit import Client, Server
for _ in range(60):
    server = Server("zmq+tcp://127.0.0.1:0", queue_bytes=1_000_000)
    client = Client(server.location, threaded=False)
    joining = threading.Thread(target=client.subscribe, args=("v", print), kwargs={"queue_bytes": 1 << 40})
    joining.start()
    while joining.is_alive():
        server.tick()
        server.wait(0.01)
    for _ in range(200):
        server.publish("v", bytes(100_000))
    client.close()
    server.close()
"""


def test_a_server_that_closes_after_its_client_does_not_abort() -> None:
    """libzmq may abort if what is sent last is for a connection that has just ended."""
    with another_process(CLOSING) as process:
        assert process.wait(DEADLINE) == 0


def test_the_last_link_takes_zeromqs_threads_and_descriptors_along(place: Location, within: Location) -> None:
    def threads() -> int:
        return sum(name.startswith("ZMQbg") for name in of_each_thread("comm"))

    wait_until(lambda: threads() == 0)
    before = threads(), open_descriptors()
    first, second = Pair(place), Pair(within)
    first.meet()
    second.meet()
    assert threads() > before[0]
    first.close()
    undisturbed(second)
    second.close()
    wait_until(lambda: (threads(), open_descriptors()) == before)


def test_out_of_descriptors_is_said_in_time(place: Location, within: Location) -> None:
    """ZeroMQ would end the process at one that it needs and does not get."""
    with Pair(within) as pair:
        for left in range(5):
            for opening in (pair.transport.bind, transport_of(place).bind):
                with few_descriptors(left), pytest.raises(TransportError, match=r"ulimit|Too many open files"):
                    opening(Location(f"zmq+inproc://other-{left}") if opening is pair.transport.bind else place)
        with Pair(place) as other:
            other.meet()
            peer = other.peer
            with few_descriptors(0):
                other.client.close(0.0)
                other.server.close(0.0)
            assert peer is not None
        pair.meet()
        undisturbed(pair)


FORKING = """
import gc, os
from links import Pair, frames
from remit import Location
place, within, other = map(Location, sys.argv[1:])
with Pair(place) as pair, Pair(within) as neighbours:
    pair.meet()
    neighbours.meet()
    pid = os.fork()
    if pid == 0:
        for link in (pair.client, pair.server, neighbours.client, neighbours.server):
            link.close(1.0)
        early = neighbours.transport.connect(within)
        assert early.receive() is None
        early.close(0.0)
        for name in (within, other):
            with Pair(name) as own:
                own.meet()
        del pair, neighbours, link
        gc.collect()
        sys.exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    for each in (pair, neighbours):
        each.to_server(b"still here")
        each.to_client(b"still there")
        each.until(lambda: frames(each.at_server) and frames(each.at_client))
    print(status, os.path.exists(place.path), os.path.exists(place.path + ".lock"))
"""


def test_a_forked_child_that_closes_forgets_and_exits_ends_nothing_of_its_parents(short_path: Path) -> None:
    """Its names within the process are free, its context is its own, and the parent's path stays."""
    places = [f"zmq+ipc://{short_path}/p.sock", "zmq+inproc://within", f"zmq+ipc://{short_path}/c.sock"]
    assert script(FORKING, *places) == "0 True True"
