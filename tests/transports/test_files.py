"""Files on which a location depends disappear, or belong to another program."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from waiting import DEADLINE, tick_until, wait_until

from remit import Client, Location, Server
from remit.errors import LocationInUse, TransportError

SCHEMES = [
    name
    for name in ("unix", "zmq+ipc", "nng+ipc", "chaos+unix")
    if not os.environ.get("REMIT_TRANSPORTS") or name in os.environ["REMIT_TRANSPORTS"] or name == "chaos+unix"
]


@pytest.fixture(autouse=True)
def _checked_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remit._io.pump.CHECK_INTERVAL_S", 0.05)


@pytest.fixture(params=SCHEMES)
def place(request: pytest.FixtureRequest, short_path: Path) -> Location:
    """A fresh path on each transport that binds a socket's file."""
    return Location(f"{request.param}://{short_path}/s.sock")


@contextlib.contextmanager
def served(place: Location, **options: object) -> Iterator[tuple[Server, list[BaseException]]]:
    """Run a server in a thread; collect the errors that end it."""
    failures: list[BaseException] = []
    server = Server(place, **options)  # type: ignore[arg-type]
    server.add_listener("ping", lambda: "pong")

    def run() -> None:
        try:
            server.run()
        except TransportError as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield server, failures
    server.close()
    thread.join(DEADLINE)


def accepts(place: Location) -> bool:
    """Return whether a socket at the path accepts connections."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(place.path) == 0


def remove_all(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def remove_lock(folder: Path) -> None:
    (folder / "s.sock.lock").unlink()


def remove_socket(folder: Path) -> None:
    (folder / "s.sock").unlink()


def leave_a_dead_socket(folder: Path) -> None:
    """Replace the socket by one whose program has ended."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / "other"))
    os.replace(folder / "other", folder / "s.sock")  # noqa: PTH105


@pytest.mark.parametrize(
    ("remove", "options"),
    [(remove_all, {}), (remove_lock, {"key": "secret"}), (remove_socket, {}), (leave_a_dead_socket, {})],
)
def test_removed_files_are_restored(place: Location, remove: Callable[[Path], None], options: dict[str, str]) -> None:
    """A client of before stays connected, a new one is answered, and no second server can bind."""
    folder = Path(place.path).parent
    with served(place, **options) as (_, failures), Client(place, **options) as former:
        assert former.request("ping") == "pong"
        remove(folder)
        wait_until(lambda: (folder / "s.sock.lock").exists() and accepts(place))
        with Client(place, **options) as client:
            assert client.request("ping", timeout=DEADLINE) == "pong"
        assert former.request("ping") == "pong"
        with pytest.raises(LocationInUse):
            Server(place)
        assert not failures
    assert list(folder.iterdir()) == []


def test_a_server_that_is_not_ticked_restores_its_files(place: Location) -> None:
    with Server(place):
        remove_all(Path(place.path).parent)
        wait_until(lambda: accepts(place))


def test_a_server_without_a_thread_restores_its_files(place: Location) -> None:
    with Server(place, threaded=False) as server:
        server.tick()
        remove_all(Path(place.path).parent)
        tick_until(server, lambda: accepts(place))


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_a_living_socket_of_another_program_is_kept(place: Location, kind: int) -> None:
    with socket.socket(socket.AF_UNIX, kind) as foreign:
        foreign.bind(place.path)
        if kind != socket.SOCK_DGRAM:
            foreign.listen(0)
        number = os.lstat(place.path).st_ino
        for _ in range(3):  # The backlog is full by then.
            with pytest.raises(LocationInUse, match="another program"):
                Server(place)
        assert os.lstat(place.path).st_ino == number
    with Server(place):
        pass


def test_a_location_that_another_program_takes_is_given_up(place: Location, caplog: pytest.LogCaptureFixture) -> None:
    """The server that lost its path to a living socket says so; its end leaves the other's file alone."""
    with served(place) as (server, failures), socket.socket(socket.AF_UNIX) as foreign:
        with Client(place) as client:
            client.request("ping")
        foreign.bind(f"{place.path}.new")
        foreign.listen()
        os.replace(f"{place.path}.new", place.path)  # noqa: PTH105
        wait_until(lambda: failures)
        assert isinstance(failures[0], LocationInUse)
        assert place.path in str(failures[0])
        with pytest.raises(LocationInUse):
            server.tick()
        assert not server.is_open
        server.close()
        probe = socket.socket(socket.AF_UNIX)
        probe.connect(place.path)
        probe.close()
    assert [record.levelname for record in caplog.records if "lost its location" in record.message] == ["WARNING"]


def test_a_second_server_that_took_the_path_ends_the_first(place: Location) -> None:
    with served(place) as (_, failures):
        remove_all(Path(place.path).parent)
        try:
            second = Server(place)
        except LocationInUse:
            return  # The first one was faster, and has its files again.
        with second:
            wait_until(lambda: failures)
            assert isinstance(failures[0], LocationInUse)


def test_a_removed_folder_is_named_and_may_return(place: Location) -> None:
    with served(place) as (server, failures):
        assert server.is_open
        folder = Path(place.path).parent
        gone = folder.rename(f"{folder}.gone")
        wait_until(lambda: failures)
        assert "folder" in str(failures[0])
        assert not server.is_open
        gone.rename(folder)
        wait_until(lambda: server.is_open)
        shutil.rmtree(folder)
        wait_until(lambda: not server.is_open)
