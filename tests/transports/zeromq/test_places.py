"""Places over ZeroMQ: whose they are, what is left of them, and which there cannot be."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import pytest
from links import Pair, losses, meet, transport_of, turn, until
from processes import SERVING, another_process, said
from zmq_strangers import undisturbed

from remit import Location
from remit.errors import BadLocation, LocationInUse, TransportError, UnknownOption
from remit.transport import SERVER, Arrival, Sent


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
        ("zmq+tcp://no-such-host.invalid:5555", "its own host"),
        ("zmq+tcp://192.0.2.1:5555", "its own host"),
        ("zmq+ipc:///no/such/folder/s.sock", "create its folder"),
    ],
)
def test_a_place_that_is_not_here_cannot_be_bound(address: str, said: str) -> None:
    with pytest.raises(TransportError, match=said):
        transport_of(Location(address)).bind(Location(address))


@pytest.mark.parametrize("address", ["zmq+tcp://127.0.0.1:0", "zmq+tcp://*:5555"])
def test_a_server_on_any_port_or_host_is_no_place_to_connect_to(address: str) -> None:
    with pytest.raises(BadLocation, match="cannot be connected to"):
        transport_of(Location(address)).connect(Location(address))
