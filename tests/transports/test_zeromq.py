"""What is true of ZeroMQ alone: strangers' sockets, routing ids, paths, its queues, its threads, and its own ends."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from links import DEADLINE, LONG, Pair, drain, frames, in_time, losses, meet, put, transport_of, turn, until
from processes import SUPPORT, another_process, said
from waiting import wait_until

from remit import Location
from remit.errors import BadLocation, LocationInUse, TransportError, UnknownOption
from remit.transport import SERVER, Arrival, Down, Frame, Link, Sent, Up

zmq = pytest.importorskip("zmq")
pytest.importorskip("remit_zeromq")

TCP = Location("zmq+tcp://127.0.0.1:0")
BIG = 100_000
"""Bytes of a frame of which a few hundred are more than the kernel holds."""

_names = itertools.count(1)


@pytest.fixture(params=["zmq+tcp", "zmq+ipc"])
def place(request: pytest.FixtureRequest, short_path: Path) -> Location:
    return TCP if request.param == "zmq+tcp" else Location(f"zmq+ipc://{short_path}/s.sock")


@pytest.fixture
def ipc(short_path: Path) -> Location:
    return Location(f"zmq+ipc://{short_path}/s.sock")


@pytest.fixture
def within() -> Location:
    return Location(f"zmq+inproc://here-{next(_names)}")


@pytest.fixture
def raw() -> Iterator[Raw]:
    with Raw() as raw:
        yield raw


class Raw:
    """Sockets of a stranger's, who has ZeroMQ and not Remit."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._sockets: list[Any] = []

    def socket(self, kind: int, *, routing_id: bytes = b"") -> Any:
        made = self._context.socket(kind)
        self._sockets.append(made)
        made.linger = 0
        made.rcvtimeo = made.sndtimeo = int(DEADLINE * 1000)
        if routing_id:
            made.setsockopt(zmq.ROUTING_ID, routing_id)
        return made

    def connected(self, kind: int, location: Location, *, routing_id: bytes = b"") -> Any:
        made = self.socket(kind, routing_id=routing_id)
        made.connect(endpoint(location))
        return made

    def reports(self, made: Any, *events: int) -> Any:
        """Return what tells of events, from now on."""
        reports = made.get_monitor_socket(sum(events))
        self._sockets.append(reports)
        return reports

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        for made in self._sockets:
            made.close(linger=0)
        self._context.term()


def endpoint(location: Location) -> str:
    if location.scheme == "zmq+tcp":
        return f"tcp://{location.host}:{location.port}"
    return f"ipc://{location.path}"


def undisturbed(pair: Pair) -> None:
    """A frame passes each way, and nothing else has come."""
    pair.to_server(b"undisturbed")
    pair.to_client(b"so am I")
    pair.until(lambda: frames(pair.at_server) and frames(pair.at_client))
    assert frames(pair.at_server) == [b"undisturbed"]
    assert frames(pair.at_client) == [b"so am I"]
    assert not losses(pair.at_server) + losses(pair.at_client)


def dropped(link: Link) -> int:
    count = link.dropped  # type: ignore[attr-defined]
    assert isinstance(count, int)
    return count


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def script(code: str, *arguments: object) -> str:
    """Run code of its own process to its end and return what it said."""
    code = f"import sys; sys.path.insert(0, {str(SUPPORT)!r})\n{code}"
    # From 3.12 on Python itself warns of forks beside threads, of which there is at least the library's here.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert ran.returncode == 0, ran.stderr
    assert not ran.stderr
    return ran.stdout.strip()


def test_importing_the_plugin_imports_no_zeromq() -> None:
    code = "import remit_zeromq; print(remit_zeromq.remit_transport('unix'), 'zmq' in sys.modules)"
    assert script(code) == "None False"


# -- strangers at the server -----------------------------------------------------------------------------------


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


# -- routing ids -----------------------------------------------------------------------------------------------


def test_a_routing_id_that_a_peer_chose_is_no_token(place: Location, raw: Raw) -> None:
    """It could come back with another connection; ids that ZeroMQ makes cannot."""
    with Pair(place) as pair:
        pair.meet()
        pair.at_server.clear()
        for count in (1, 2):

            def call() -> None:
                """As long as the connection before is not quite gone, ZeroMQ is deaf to this one."""
                chosen = raw.connected(zmq.DEALER, pair.location, routing_id=b"alice")
                chosen.send(b"it is me again")
                pair.server.wait(0.05)
                drain(pair.server, pair.at_server)
                chosen.close()

            until(lambda: dropped(pair.server) == count, call)  # noqa: B023
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


# -- strangers at the client -----------------------------------------------------------------------------------


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
from remit_zeromq.monitor import reported, watch
context = zmq.Context()
flapping, puller, pusher = (context.socket(kind) for kind in (zmq.DEALER, zmq.PULL, zmq.PUSH))
reports = watch(flapping, zmq.EVENT_ALL)
for _ in range(3000):
    flapping.connect("tcp://127.0.0.1:1")
    flapping.disconnect("tcp://127.0.0.1:1")
pusher.connect(f"tcp://127.0.0.1:{puller.bind_to_random_port('tcp://127.0.0.1')}")
pusher.send(b"past all that")
if not puller.poll(DEADLINE / 2 * 1000):
    os._exit(1)
assert sum(1 for _ in reported(reports)) > 2000
flapping.disable_monitor()
reports.close()
context.destroy(linger=0)
print("ok")
"""


def test_reports_that_nobody_reads_stop_nothing() -> None:
    """ZeroMQ's own bound of 2,000 would stop its thread, and closing a link would then stop the process."""
    assert script(FLOOD) == "ok"


# -- places ----------------------------------------------------------------------------------------------------


SERVING = """
from links import transport_of
from remit import Location
location = Location(sys.argv[1])
server = transport_of(location).bind(location)
print(server.location, flush=True)
sys.stdin.read()
server.close(0.0)
"""


def test_the_place_of_a_killed_server_is_taken_over(place: Location) -> None:
    """Not before it is dead; and its client comes up again at the new one."""
    with another_process(SERVING, place) as process:
        location = Location(said(process))
        transport = transport_of(location)
        client, at_client, at_server = transport.connect(location), list[Arrival](), list[Arrival]()
        until(lambda: at_client, lambda: turn((client, at_client)))
        with pytest.raises(LocationInUse, match="has a server already"):
            transport.bind(location)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        until(lambda: losses(at_client), lambda: turn((client, at_client)))
        assert client.send(SERVER, b"too late") is Sent.GONE
        if location.path:
            assert stat.S_ISSOCK(Path(location.path).lstat().st_mode)
        server = transport.bind(location)
        at_client.clear()
        meet((server, at_server), (client, at_client))
        client.close(0.0)
        server.close(0.0)


def test_a_file_in_the_way_is_kept(ipc: Location) -> None:
    """ZeroMQ deletes whatever is at the path."""
    path = Path(ipc.path)
    path.write_text("precious")
    with pytest.raises(TransportError, match="not a socket"):
        transport_of(ipc).bind(ipc)
    assert path.read_text() == "precious"
    path.unlink()
    with Pair(ipc) as pair:
        pair.meet()


def test_nobody_else_may_connect_and_nothing_is_left(ipc: Location) -> None:
    with Pair(ipc) as pair:
        pair.meet()
        assert stat.S_IMODE(Path(ipc.path).stat().st_mode) == 0o600
    assert list(Path(ipc.path).parent.iterdir()) == []


@pytest.mark.parametrize("host", ["[::1]", "localhost"])
def test_hosts_are_names_or_addresses_of_either_kind(host: str) -> None:
    if host == "[::1]" and not Path("/proc/net/if_inet6").exists():
        pytest.skip("no IPv6 here")
    with Pair(Location(f"zmq+tcp://{host}:0")) as pair:
        assert pair.location.url == f"zmq+tcp://{host}:{pair.location.port}"
        pair.meet()
        undisturbed(pair)


@pytest.mark.parametrize(
    ("address", "error", "said"),
    [
        ("zmq+tcp://127.0.0.1:0?hmw=5", UnknownOption, "did you mean 'hwm'"),
        ("zmq+tcp://127.0.0.1:0?hwm=0", BadLocation, "positive"),
        ("zmq+tcp://127.0.0.1:0?hwm=99999999999", BadLocation, "the most that is allowed"),
        ("zmq+tcp://127.0.0.1:0?max_frame=9GiB", BadLocation, "the most that is allowed"),
        ("zmq+tcp://127.0.0.1:0?max_frame=little", BadLocation, "positive whole number"),
        ("zmq+tcp://127.0.0.1", BadLocation, "needs a host and a port"),
        ("zmq+tcp://:5555", BadLocation, "needs a host and a port"),
        ("zmq+tcp://127.0.0.1:5555/events", BadLocation, "needs a host and a port and no more"),
        ("zmq+tcp://me@127.0.0.1:5555", BadLocation, "names a user"),
        ("zmq+ipc://tmp/events.sock", BadLocation, "three slashes"),
        ("zmq+ipc://", BadLocation, "three slashes"),
        ("zmq+ipc:///tmp/" + "x" * 103, BadLocation, "over 107 bytes"),
        ("zmq+ipc:///tmp/%00", BadLocation, "zero byte"),
        ("zmq+inproc://", BadLocation, "needs a name"),
        ("zmq+inproc://here:5", BadLocation, "needs a name and no more"),
        ("zmq+inproc://" + "x" * 300, BadLocation, "over 240 bytes"),
    ],
)
def test_a_wrong_location_is_refused_by_both_ends(address: str, error: type[Exception], said: str) -> None:
    location = Location(address)
    for opening in (transport_of(location).bind, transport_of(location).connect):
        with pytest.raises(error, match=said):
            opening(location)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("zmq+tcp://no-such-host.invalid:5555", "its host's own"),
        ("zmq+tcp://192.0.2.1:5555", "its host's own"),
        ("zmq+ipc:///no/such/folder/s.sock", "create its folder"),
    ],
)
def test_a_place_that_is_not_here_cannot_be_bound(address: str, said: str) -> None:
    with pytest.raises(TransportError, match=said):
        transport_of(Location(address)).bind(Location(address))


@pytest.mark.parametrize("address", ["zmq+tcp://127.0.0.1:0", "zmq+tcp://*:5555"])
def test_a_server_on_any_port_or_host_is_no_place_to_connect_to(address: str) -> None:
    with pytest.raises(BadLocation, match="no place to connect to"):
        transport_of(Location(address)).connect(Location(address))


# -- queues ----------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr("remit_zeromq.transport.HEARTBEAT", 100)
    monkeypatch.setattr("remit_zeromq.transport.DEAD", 1000)
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


# -- the end ---------------------------------------------------------------------------------------------------


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


def test_the_last_link_takes_zeromqs_threads_and_descriptors_along(place: Location, within: Location) -> None:
    def threads() -> int:
        names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
        return sum(name.startswith("ZMQbg") for name in names)

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    wait_until(lambda: threads() == 0)
    before = threads(), descriptors()
    first, second = Pair(place), Pair(within)
    first.meet()
    second.meet()
    assert threads() > before[0]
    first.close()
    undisturbed(second)
    second.close()
    wait_until(lambda: (threads(), descriptors()) == before)


def test_out_of_descriptors_is_said_in_time(place: Location, within: Location) -> None:
    """ZeroMQ would end the process at one that it needs and does not get."""
    with Pair(within) as pair:
        for left in range(5):
            for opening in (pair.transport.bind, transport_of(place).bind):
                with few_descriptors(left), pytest.raises(TransportError, match=r"ulimit|Too many open files"):
                    opening(Location(f"zmq+inproc://other-{next(_names)}") if opening is pair.transport.bind else place)
        with Pair(place) as other:
            other.meet()
            peer = other.peer
            with few_descriptors(0):
                other.client.close(0.0)
                other.server.close(0.0)
            assert peer is not None
        pair.meet()
        undisturbed(pair)


@contextlib.contextmanager
def few_descriptors(left: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.open(os.devnull, os.O_RDONLY)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe + left, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


FORKING = """
import gc, os
from links import Pair, frames
from remit import Location
from remit_zeromq import context
place, within, other = map(Location, sys.argv[1:])
with Pair(place) as pair, Pair(within) as neighbours:
    pair.meet()
    neighbours.meet()
    pid = os.fork()
    if pid == 0:
        assert context._context is None
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


# -- within one process ----------------------------------------------------------------------------------------


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


def test_neighbours_of_another_name_are_strangers(within: Location) -> None:
    with Pair(within) as pair, Pair(Location(within.url + "/other")) as other:
        pair.meet()
        other.meet()
        undisturbed(pair)
        undisturbed(other)
