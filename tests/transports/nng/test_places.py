"""Places over nng: whose they are, what is left of them, and which there cannot be."""

from __future__ import annotations

import gc
import signal
import socket
import stat
from pathlib import Path

import pytest
from descriptors import open_descriptors
from links import DEADLINE, Pair, frames, losses, meet, transport_of, turn, until
from nng_strangers import (
    SOON,
    Limit,
    asked,
    file,
    undisturbed,
)
from processes import another_process, said

from remit import Location
from remit.errors import BadLocation, LocationInUse, TransportError, UnknownOption
from remit.transport import Arrival

SERVER_PROCESS = """
from links import transport_of, turn
from remit import Location
location = Location(sys.argv[1])
server = transport_of(location).bind(location)
print(server.location.url, flush=True)
while True:
    turn((server, []))
"""


def test_another_process_holds_the_location_until_it_dies(place: Location) -> None:
    """Its clients see it go, and the next server there has them: a path that was left behind is taken over."""
    at_client: list[Arrival] = []
    with another_process(SERVER_PROCESS, place.url) as process:
        place = Location(said(process))
        with pytest.raises(LocationInUse, match=r"choose another (path|place)"):
            transport_of(place).bind(place)
        client = transport_of(place).connect(place)
        until(lambda: at_client, lambda: turn((client, at_client)))
        process.send_signal(signal.SIGKILL)
        process.wait(DEADLINE)
        until(lambda: losses(at_client), lambda: turn((client, at_client)))
    assert not place.path or Path(place.path).exists(), "nothing was left to be taken over"
    server = transport_of(place).bind(place)
    at_client.clear()
    meet((server, []), (client, at_client))
    client.close(0.0)
    server.close(0.0)
    assert not place.path or list(Path(place.path).parent.iterdir()) == []


def test_nothing_is_left_in_the_folder(ipc: Location, path: Path, claims_within: Limit) -> None:
    """And while there is something, it is this user's alone."""
    with undisturbed(ipc) as pair:
        with claims_within(SOON):
            _, where = asked(pair.location, pair.turn)
        assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(file(ipc, where).stat().st_mode) == 0o600
        pair.until(lambda: not file(ipc, where).exists())
        asked(pair.location, pair.turn)
    assert list(path.parent.iterdir()) == []


def test_what_a_killed_server_left_is_cleared_away(ipc: Location, path: Path) -> None:
    """Sessions that nobody had come to yet; files that only look like them stay."""
    with another_process(SERVER_PROCESS, ipc) as process:
        said(process)
        _, where = asked(ipc, lambda: None)
        process.send_signal(signal.SIGKILL)
        process.wait(DEADLINE)
    left = file(ipc, where)
    assert left.exists()
    precious = [left.with_name(f"{path.name}~{name}") for name in ("00000000", "notes")]
    for other in precious:
        other.write_text("precious")
    with Pair(ipc) as pair:
        pair.meet()
        assert not left.exists()
    assert sorted(path.parent.iterdir()) == precious


def test_a_file_that_is_no_socket_is_left_alone(ipc: Location, path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(TransportError, match="not a socket"):
        transport_of(ipc).bind(ipc)
    assert path.read_text() == "precious"
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_folder_is_named(short_path: Path) -> None:
    place = Location(f"nng+ipc://{short_path}/missing/s.sock")
    with pytest.raises(TransportError, match=r"missing/s\.sock.*create its folder"):
        transport_of(place).bind(place)


def test_a_refused_bind_leaves_nothing_open(place: Location) -> None:
    with Pair(place) as pair:
        pair.meet()
        before = open_descriptors()
        for _ in range(5):
            with pytest.raises(LocationInUse):
                pair.transport.bind(pair.location)
        gc.collect()
        assert open_descriptors() <= before


@pytest.mark.parametrize(
    "url",
    [
        "nng+tcp://127.0.0.1",
        "nng+tcp://:5555",
        "nng+tcp://127.0.0.1:5555{path}",
        "nng+tcp://user:secret@127.0.0.1:5555",
        "nng+tcp://127.0.0.1:5555?max_frame=much",
        "nng+tcp://127.0.0.1:5555?max_frame=0",
        "nng+ipc://relative.sock",
        "nng+ipc:///",
        "nng+ipc://host{path}",
        "nng+ipc://user@{path}",
        "nng+ipc://{path}" + "x" * 98,
    ],
)
@pytest.mark.parametrize("verb", ["bind", "connect"])
def test_an_impossible_location_is_refused(path: Path, url: str, verb: str) -> None:
    """And what is at its path is left alone."""
    path.write_text("precious")
    place = Location(url.format(path=path))
    with pytest.raises(BadLocation) as refused:
        getattr(transport_of(place), verb)(place)
    assert "secret" not in str(refused.value)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("url", ["nng+tcp://127.0.0.1:0", "nng+tcp://*:5555"])
def test_a_server_may_be_where_a_client_cannot_go(url: str) -> None:
    with pytest.raises(BadLocation, match="cannot be connected to"):
        transport_of(Location(url)).connect(Location(url))


def test_an_unknown_option_is_told_its_nearest(place: Location) -> None:
    for verb in ("bind", "connect"):
        with pytest.raises(UnknownOption, match="'max_frame'"):
            getattr(transport_of(place), verb)(Location(place.url, max_frames="1MiB"))


def test_a_host_without_an_address_is_said() -> None:
    place = Location("nng+tcp://nowhere.invalid:5555")
    with pytest.raises(TransportError, match="check the host"):
        transport_of(place).bind(place)


def test_the_limit_of_a_frame_is_an_option(place: Location) -> None:
    with Pair(Location(place.url, max_frame="1KiB")) as pair:
        assert pair.client.capabilities.max_frame == pair.server.capabilities.max_frame == 1024
        pair.meet()
        pair.to_server(bytes(1024))
        pair.until(lambda: frames(pair.at_server))


def test_the_longest_path_works(short_path: Path) -> None:
    place = Location(f"nng+ipc://{short_path}/{'x' * (98 - len(str(short_path)) - 1)}")
    with Pair(place) as pair:
        pair.meet()


def test_ipv6_works() -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this host has no IPv6")
    with Pair(Location("nng+tcp://[::1]:0")) as pair:
        assert pair.location.host == "::1"
        assert pair.location.port
        pair.meet()
        with pytest.raises(LocationInUse):
            pair.transport.bind(pair.location)


def test_a_server_at_all_addresses_is_reached_at_each() -> None:
    server = transport_of(Location("nng+tcp://0.0.0.0:0")).bind(Location("nng+tcp://0.0.0.0:0"))
    for host in ("127.0.0.1", "localhost"):
        client = transport_of(server.location).connect(server.location.replace(host=host))
        meet((server, []), (client, []))
        client.close(0.0)
    server.close(0.0)
