"""The path of a `unix:` location: whose it is, and what is left of it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
from pathlib import Path

import pytest
from links import DEADLINE, Pair, losses, meet, transport_of, turn, until
from processes import SERVING, another_process, said

from remit import Location
from remit.errors import BadLocation, LocationInUse, TransportError
from remit.runtime_dirs import MAX_PATH_BYTES
from remit.transport import Arrival, FileLock

FORKED_SERVER = """
import os
from links import transport_of, turn
from remit import Location
location = Location(sys.argv[1])
server = transport_of(location).bind(location)
if os.fork() == 0:
    print("forked", flush=True)
    sys.stdin.read()
    os._exit(0)
arrivals = []
while True:
    turn((server, arrivals))
"""


def test_another_process_holds_the_location_until_it_dies(place: Location, path: Path) -> None:
    with another_process(SERVING, place) as process:
        assert said(process) == str(place)
        with pytest.raises(LocationInUse, match="choose another path"):
            transport_of(place).bind(place)
        process.send_signal(signal.SIGKILL)
        process.wait(DEADLINE)
        assert path.exists(), "nothing was left to be taken over"
        with Pair(place) as pair:
            pair.meet()


def test_nothing_is_left_in_the_folder(place: Location, path: Path) -> None:
    with Pair(place) as pair:
        pair.meet()
    assert list(path.parent.iterdir()) == []


def test_a_forked_child_that_lives_on_holds_nothing(place: Location) -> None:
    """The server dies; the child it forked does not. Its clients see it go, and another may bind."""
    arrivals: list[Arrival] = []
    with another_process(FORKED_SERVER, place) as process:
        assert said(process) == "forked"  # Until a child has run its first line, it holds what its parent did.
        client = transport_of(place).connect(place)
        until(lambda: arrivals, lambda: turn((client, arrivals)))
        process.send_signal(signal.SIGKILL)
        process.wait(DEADLINE)
        until(lambda: losses(arrivals), lambda: turn((client, arrivals)))
        server = transport_of(place).bind(place)
        meet((server, []), (client, arrivals))
        client.close(0.0)
        server.close(0.0)


def test_a_file_that_is_no_socket_is_left_alone(place: Location, path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(TransportError, match="not a socket"):
        transport_of(place).bind(place)
    assert path.read_text() == "precious"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_missing_folder_is_named(short_path: Path) -> None:
    place = Location(f"unix://{short_path}/missing/s.sock")
    with pytest.raises(TransportError, match=r"missing/s\.sock.*create its folder"):
        transport_of(place).bind(place)


@pytest.mark.parametrize("url", ["unix://relative.sock", "unix:///", f"unix:///{'x' * MAX_PATH_BYTES}"])
@pytest.mark.parametrize("verb", ["bind", "connect"])
def test_an_impossible_path_is_refused(url: str, verb: str) -> None:
    place = Location(url)
    with pytest.raises(BadLocation):
        getattr(transport_of(place), verb)(place)


def test_the_longest_path_works(short_path: Path) -> None:
    place = Location(f"unix://{short_path}/{'x' * (MAX_PATH_BYTES - len(str(short_path)) - 1)}")
    with Pair(place) as pair:
        pair.meet()


def test_one_of_many_gets_the_claim(path: Path) -> None:
    """Claims are taken and given back at once by many threads: never do two hold it together."""
    holding, held = threading.Lock(), list[bool]()

    def contend() -> None:
        for _ in range(50):
            claim = insist()
            held.append(holding.acquire(blocking=False))
            holding.release()
            claim.release()

    def insist() -> FileLock:
        while True:
            with contextlib.suppress(LocationInUse):
                return FileLock(str(path))

    threads = [threading.Thread(target=contend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert held == [True] * 200
    assert list(path.parent.iterdir()) == []


def test_a_lock_file_that_has_lost_its_name_is_no_claim(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another server ends between our opening its lock file and our locking it."""
    flock, lost = fcntl.flock, list[str]()

    def lose_the_name_first(descriptor: int, operation: int) -> None:
        if not lost:
            lost.append("once")
            path.with_name(path.name + ".lock").unlink()
        flock(descriptor, operation)

    monkeypatch.setattr("remit.transport.fcntl.flock", lose_the_name_first)
    claim = FileLock(str(path))
    assert lost
    with pytest.raises(LocationInUse):
        FileLock(str(path))
    claim.release()


def test_a_claim_ends_although_a_copy_of_its_descriptor_lives(path: Path) -> None:
    """A process that is just being started holds copies of all descriptors for a moment."""
    claim = FileLock(str(path))
    copy = os.dup(claim.fileno())
    lock = path.with_name(path.name + ".lock")
    other_name = path.with_name("kept")
    other_name.hardlink_to(lock)
    claim.release()
    other_name.rename(lock)
    FileLock(str(path)).release()
    os.close(copy)
