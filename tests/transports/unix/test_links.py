"""What is true of `unix:` alone: who calls, garbage, descriptors that run out, readers who are slow."""

from __future__ import annotations

import itertools
import os
import select
import socket
import stat
import struct
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
from descriptors import few_descriptors
from hypothesis import given
from hypothesis import strategies as st
from links import DEADLINE, Pair, close_when_full, frames, losses, meet, transport_of, turn, until, waits
from processes import another_process, said

from remit import Location
from remit.transport import SERVER, Arrival, Credentials, Down, Link, Poller, Sent, Up
from remit.transports.stream_link import MAX_UNSENT_BYTES, FrameDecoder

CLIENT = """
from links import close_when_full
from links import transport_of
from remit import Location
location = Location(sys.argv[1])
client = transport_of(location).connect(location)
print(client.receive(), flush=True)
sys.stdin.read()
client.close(0.0)
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
    monkeypatch.setattr("remit.transports.stream_link.anonymous_device", lambda: device)
    with Pair(place) as pair:
        pair.meet()
        ups = [arrival for arrival in pair.at_server if isinstance(arrival, Up)]
        assert [up.credentials for up in ups] == [Credentials(os.getpid(), os.getuid(), os.getgid(), None)]


def test_nobody_else_may_connect(place: Location, path: Path) -> None:
    with Pair(place):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


# -- one poll for each turn ------------------------------------------------------------------------------------


def received_until_none(link: Link) -> list[Arrival]:
    return list(iter(link.receive, None))


def test_receive_does_not_poll_again_after_wait_has_read_everything(place: Location) -> None:
    with Pair(place) as pair:
        pair.meet()
        polls: list[int] = []

        def take_turn() -> None:
            pair.to_server(b"a")
            with mock.patch.object(Poller, "poll", autospec=True, side_effect=Poller.poll) as poll:
                pair.server.wait(DEADLINE)
                assert frames(received_until_none(pair.server)) == [b"a"]
            polls.append(poll.call_count)

        until(lambda: 1 in polls, take_turn)  # Each poll more is for a thread that has paused in between.


@pytest.mark.parametrize("sizes", [[10_000] * 10, [100_000], [100_000, 1], [1, 100_000]])
def test_receive_returns_what_the_read_of_wait_has_left(place: Location, sizes: list[int]) -> None:
    """As many frames as one client sends that are as long, or one frame of each of two."""
    with Pair(place) as pair:
        pair.meet()
        other = pair.transport.connect(pair.location)
        pair.until(lambda: sum(isinstance(each, Up) for each in pair.at_server) == 2)
        until(lambda: Up in map(type, received_until_none(other)), lambda: other.wait(0.01))
        for size, sender in zip(sizes, itertools.cycle((pair.client, other if 1 in sizes else pair.client))):
            assert sender.send(SERVER, bytes(size)) is Sent.ACCEPTED
        pair.server.wait(DEADLINE)
        assert sorted(map(len, frames(received_until_none(pair.server)))) == sorted(sizes)
        other.close(0.0)


def test_a_frame_that_arrives_while_the_program_works_is_received_after_that(place: Location) -> None:
    """Otherwise a server would count its client as silent during a pause between wait() and tick()."""
    with Pair(place) as pair:
        pair.meet()
        pair.to_server(b"before")
        pair.server.wait(DEADLINE)
        pair.to_server(b"meanwhile")
        time.sleep(0.01)
        assert frames(received_until_none(pair.server)) == [b"before", b"meanwhile"]


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
    unframer, got, at = FrameDecoder(60), list[bytes](), 0
    while at < len(wire):
        size = data.draw(st.integers(1, 150))
        got += unframer.feed(wire[at : at + size])
        at += size
    assert got == expected


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
        with few_descriptors(0):
            assert "Up" in said(process)
            assert waits(server, 0.5) < 20, "it spins"
            assert server.receive() is None
        until(lambda: arrivals, lambda: turn((server, arrivals)))
    until(lambda: losses(arrivals), lambda: turn((server, arrivals)))
    assert [type(arrival) for arrival in arrivals] == [Up, Down]
    server.close(0.0)


# -- what waits to leave ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("towards", ["server", "client"])
def test_close_lingers_until_all_has_left(place: Location, towards: str) -> None:
    """More than the kernel holds waits for a reader who begins only after the writer has begun to close."""
    with Pair(place) as pair:
        pair.meet()
        sent, heard = close_when_full(pair, towards)
        assert sum(map(len, sent)) >= MAX_UNSENT_BYTES
        assert heard == sent


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
