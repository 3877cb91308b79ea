"""What is true of `unix:` alone: who calls, garbage, files that stay behind, descriptors that run out."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from links import DEADLINE, Pair, frames, in_time, losses, meet, transport_of, turn, until

from remit import Location
from remit.claim import Claim
from remit.errors import BadLocation, LocationInUse, TransportError
from remit.stream import BACKLOG, Unframer
from remit.transport import SERVER, Arrival, Credentials, Down, Link, Sent, Up
from remit.unix import LONGEST_PATH

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture
def path(short_path: Path) -> Path:
    return short_path / "s.sock"


@pytest.fixture
def place(path: Path) -> Location:
    return Location(f"unix://{path}")


@contextlib.contextmanager
def another_process(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run code that imports `links` in a process of its own; it ends when its standard input does."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(SUPPORT)!r})\n{code}", *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
        process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], DEADLINE)
    assert ready, f"nothing said within {DEADLINE} s"
    return process.stdout.readline().strip()


CLIENT = """
from links import transport_of
from remit import Location
location = Location(sys.argv[1])
client = transport_of(location).connect(location)
print(client.receive(), flush=True)
sys.stdin.read()
client.close(0.0)
"""
SERVER_PROCESS = """
from links import transport_of
from remit import Location
location = Location(sys.argv[1])
server = transport_of(location).bind(location)
print("bound", flush=True)
sys.stdin.read()
server.close(0.0)
"""
FORKED_SERVER = """
import os
from links import transport_of, turn
from remit import Location
location = Location(sys.argv[1])
server = transport_of(location).bind(location)
if os.fork() == 0:
    sys.stdin.read()
    os._exit(0)
print("bound", flush=True)
arrivals = []
while True:
    turn((server, arrivals))
"""


# -- who calls -------------------------------------------------------------------------------------------------


def test_the_kernel_says_who_calls(place: Location) -> None:
    server = transport_of(place).bind(place)
    arrivals: list[Arrival] = []
    with another_process(CLIENT, place) as process:
        until(lambda: arrivals, lambda: turn((server, arrivals)))
        pidfd = os.pidfd_open(process.pid)
        inode = os.fstat(pidfd).st_ino
        os.close(pidfd)
        (up,) = arrivals
        assert isinstance(up, Up)
        assert up.credentials == Credentials(process.pid, os.getuid(), os.getgid(), inode)
        assert f"pid={os.getpid()}" in said(process)
    server.close(0.0)


def test_where_pidfds_share_an_inode_none_is_told(place: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Linux 6.9 a pidfd was an anonymous inode like any other: stand in for it by calling all so."""
    pidfd = os.pidfd_open(os.getpid())
    device = os.fstat(pidfd).st_dev
    os.close(pidfd)
    monkeypatch.setattr("remit.attest._anonymous_device", lambda: device)
    with Pair(place) as pair:
        pair.meet()
        ups = [arrival for arrival in pair.at_server if isinstance(arrival, Up)]
        assert [up.credentials for up in ups] == [Credentials(os.getpid(), os.getuid(), os.getgid(), None)]


def test_nobody_else_may_connect(place: Location, path: Path) -> None:
    with Pair(place):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


# -- garbage ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("garbage", "why"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "does not speak this protocol"),
        (struct.pack(">I", (16 << 20) + 1), "over the limit"),
        (struct.pack(">I", 100) + b"only a part", "closed"),
        (b"\0\0", "closed"),
        (b"", "closed"),
    ],
)
def test_whoever_sends_garbage_is_dropped_alone(place: Location, path: Path, garbage: bytes, why: str) -> None:
    with Pair(place) as pair:
        pair.meet()
        pair.at_server.clear()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
            stranger.connect(str(path))
            stranger.sendall(garbage)
            stranger.shutdown(socket.SHUT_WR)
            pair.until(lambda: losses(pair.at_server))
        up, down = pair.at_server
        assert isinstance(up, Up)
        assert isinstance(down, Down)
        assert up.peer == down.peer
        assert why in down.why
        pair.at_server.clear()
        pair.to_server(b"undisturbed")
        pair.until(lambda: frames(pair.at_server))
        assert frames(pair.at_server) == [b"undisturbed"]


def test_a_server_that_speaks_garbage_is_left_and_tried_again(place: Location, path: Path) -> None:
    arrivals: list[Arrival] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as impostor:
        impostor.bind(str(path))
        impostor.listen()
        impostor.settimeout(DEADLINE)
        client = transport_of(place).connect(place)
        for attempt in range(1, 4):
            connection, _ = impostor.accept()
            with connection:
                connection.sendall(b"SSH-2.0")
                until(lambda: len(arrivals) == 2 * attempt, lambda: turn((client, arrivals)))  # noqa: B023
            until(lambda: select.select([impostor], [], [], 0)[0], lambda: turn((client, arrivals)))
            del arrivals[2 * attempt :]
        client.close(0.0)
    assert [type(arrival) for arrival in arrivals] == [Up, Down] * 3


@given(st.lists(st.binary(max_size=60)), st.data())
def test_frames_do_not_depend_on_how_they_are_cut(expected: list[bytes], data: st.DataObject) -> None:
    wire = b"".join(struct.pack(">I", len(frame)) + frame for frame in expected)
    unframer, got, at = Unframer(60), list[bytes](), 0
    while at < len(wire):
        size = data.draw(st.integers(1, 150))
        got += unframer.feed(wire[at : at + size])
        at += size
    assert got == expected


# -- the path --------------------------------------------------------------------------------------------------


def test_another_process_holds_the_location_until_it_dies(place: Location, path: Path) -> None:
    with another_process(SERVER_PROCESS, place) as process:
        assert said(process) == "bound"
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
        assert said(process) == "bound"
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


@pytest.mark.parametrize("url", ["unix://relative.sock", "unix:///", f"unix:///{'x' * LONGEST_PATH}"])
@pytest.mark.parametrize("verb", ["bind", "connect"])
def test_an_impossible_path_is_refused(url: str, verb: str) -> None:
    place = Location(url)
    with pytest.raises(BadLocation):
        getattr(transport_of(place), verb)(place)


def test_the_longest_path_works(short_path: Path) -> None:
    place = Location(f"unix://{short_path}/{'x' * (LONGEST_PATH - len(str(short_path)) - 1)}")
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

    def insist() -> Claim:
        while True:
            with contextlib.suppress(LocationInUse):
                return Claim(str(path))

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

    monkeypatch.setattr("remit.claim.fcntl.flock", lose_the_name_first)
    claim = Claim(str(path))
    assert lost
    with pytest.raises(LocationInUse):
        Claim(str(path))
    claim.release()


def test_a_claim_ends_although_a_copy_of_its_descriptor_lives(path: Path) -> None:
    """A process that is just being started holds copies of all descriptors for a moment."""
    claim = Claim(str(path))
    copy = os.dup(claim._descriptor)
    lock = path.with_name(path.name + ".lock")
    other_name = path.with_name("kept")
    other_name.hardlink_to(lock)
    claim.release()
    other_name.rename(lock)
    Claim(str(path)).release()
    os.close(copy)


# -- descriptors -----------------------------------------------------------------------------------------------


def test_no_descriptor_passes_to_a_program(place: Location) -> None:
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with Pair(place) as pair:
        pair.meet()
        ours = [int(name) for name in set(os.listdir("/proc/self/fd")) - before if _open(int(name))]  # noqa: PTH208
        assert len(ours) >= 5
        assert not [descriptor for descriptor in ours if os.get_inheritable(descriptor)]


def _open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_a_server_out_of_descriptors_rests_and_recovers(place: Location) -> None:
    """With no descriptor left a caller waits; once there is one, it is let in. Meanwhile nothing spins."""
    server = transport_of(place).bind(place)
    arrivals: list[Arrival] = []
    with another_process(CLIENT, place) as process:
        with no_descriptor_left():
            assert "Up" in said(process)
            assert turns(server, 0.5) < 20, "it spins"
            assert server.receive() is None
        until(lambda: arrivals, lambda: turn((server, arrivals)))
    until(lambda: losses(arrivals), lambda: turn((server, arrivals)))
    assert [type(arrival) for arrival in arrivals] == [Up, Down]
    server.close(0.0)


def turns(link: Link, seconds: float) -> int:
    """Return how often a link that is always waited for asks the kernel."""
    poller = link._poller  # type: ignore[attr-defined]
    asked: list[float] = []
    poll = poller.poll

    def counted(timeout: float) -> list[tuple[int, int]]:
        asked.append(timeout)
        return list(poll(timeout))

    poller.poll = counted
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        link.wait(left)
    poller.poll = poll
    return len(asked)


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.open(os.devnull, os.O_RDONLY)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# -- what waits to leave ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("towards", ["server", "client"])
def test_close_lingers_until_all_has_left(place: Location, towards: str) -> None:
    """More than the kernel holds waits for a reader who begins only after the writer has begun to close."""
    with Pair(place) as pair:
        peer = pair.meet()
        writer, to = (pair.client, SERVER) if towards == "server" else (pair.server, peer)
        reader, kept = (pair.server, pair.at_server) if towards == "server" else (pair.client, pair.at_client)
        data = os.urandom(10_000)
        taken = 0
        while writer.send(to, data) is Sent.ACCEPTED:
            taken += 1
        assert taken * len(data) >= BACKLOG
        closing = threading.Thread(target=in_time, args=(partial(writer.close, DEADLINE), writer))
        closing.start()
        until(lambda: Down in map(type, kept), lambda: turn((reader, kept)))
        closing.join(DEADLINE)
        assert frames(kept) == [data] * taken


def test_a_slow_reader_does_not_hold_up_another(place: Location) -> None:
    with Pair(place) as pair:
        slow = pair.meet()
        other = pair.transport.connect(pair.location)
        kept: list[Arrival] = []
        quick = meet((pair.server, []), (other, kept))
        while pair.server.send(slow, bytes(10_000)) is not Sent.FULL:
            pass
        send: Callable[[], object] = partial(pair.server.send, quick, b"past the queue")
        assert send() is Sent.ACCEPTED
        until(lambda: frames(kept), lambda: turn((other, kept)))
        assert frames(kept) == [b"past the queue"]
        other.close(0.0)


def test_the_limit_of_a_frame_is_an_option(place: Location) -> None:
    place = Location(place.url, max_frame="1KiB")
    with Pair(place) as pair:
        assert pair.client.capabilities.max_frame == pair.server.capabilities.max_frame == 1024
        pair.meet()
        pair.to_server(bytes(1024))
        pair.until(lambda: frames(pair.at_server))
