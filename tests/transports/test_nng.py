"""What is special to nng: strangers in its lobby and at its sessions, what it leaves behind, forks, its own threads."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import select
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from links import DEADLINE, LONG, Pair, frames, in_time, losses, meet, transport_of, turn, until
from processes import SUPPORT, another_process, said
from waiting import wait_until

from remit import Location
from remit.errors import BadLocation, LocationInUse, TransportError, UnknownOption
from remit.transport import SERVER, Arrival, Down, Frame, Link, Peer, Sent, Up

pynng: Any = pytest.importorskip("pynng")
pytest.importorskip("remit_nng")

SCHEMES = ("nng+tcp", "nng+ipc")
ASK = b"remit 1"
TOKEN = 16
SOON = 0.1
"""Seconds that a claim may take in tests that wait for its end."""
MEMBERS = 100
"""Clients that come at once."""

SERVER_PROCESS = """
from links import transport_of, turn
from remit import Location
location = Location(sys.argv[1])
server = transport_of(location).bind(location)
print(server.location.url, flush=True)
while True:
    turn((server, []))
"""


@pytest.fixture(params=SCHEMES)
def place(request: pytest.FixtureRequest, short_path: Path) -> Location:
    return Location("nng+tcp://127.0.0.1:0" if request.param == "nng+tcp" else f"nng+ipc://{short_path}/s.sock")


@pytest.fixture
def tcp() -> Location:
    return Location("nng+tcp://127.0.0.1:0")


@pytest.fixture
def path(short_path: Path) -> Path:
    return short_path / "s.sock"


@pytest.fixture
def ipc(path: Path) -> Location:
    return Location(f"nng+ipc://{path}")


Limit: TypeAlias = Callable[[float], contextlib.AbstractContextManager[None]]


@pytest.fixture
def claims_within(monkeypatch: pytest.MonkeyPatch) -> Limit:
    """For a while, what nobody claims is given up after so many seconds."""

    @contextlib.contextmanager
    def within(seconds: float) -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr("remit_nng.server.CLAIM", seconds)
            patch.setattr("remit_nng.client.CLAIM", seconds)
            yield

    return within


# -- strangers -------------------------------------------------------------------------------------------------


def door(location: Location, where: str = "") -> str:
    """Return nng's own name of a lobby, or of a session that was told there."""
    if location.path:
        return f"ipc://{file(location, where)}"
    return f"tcp://{location.host}:{where or location.port}"


def file(location: Location, where: str = "") -> Path:
    return Path(f"{location.path}~{where}" if where else location.path)


def raw(location: Location, where: str = "") -> socket.socket:
    """Connect to where nng listens, with nothing of nng."""
    if location.path:
        stranger = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            stranger.connect(str(file(location, where)))
        except OSError:
            stranger.close()
            raise
        return stranger
    return socket.create_connection((location.host, int(where or location.port or 0)))


def answered(stranger: Any, step: Callable[[], None]) -> bytes:
    answers: list[bytes] = []

    def heard() -> bool:
        with contextlib.suppress(pynng.TryAgain):
            answers.append(received(stranger))
        return bool(answers)

    until(heard, step)
    return answers[0]


def received(stranger: Any) -> bytes:
    return bytes(stranger.recv_msg(block=False).bytes)


def asked(location: Location, step: Callable[[], None]) -> tuple[bytes, str]:
    """Ask in the lobby as a client does; return the token and the place of the session that was given."""
    with pynng.Req0(dial=door(location)) as lobby:
        lobby.send(ASK)
        answer = answered(lobby, step)
    return answer[:TOKEN], answer[TOKEN:].decode()


def opened(location: Location, where: str) -> Any:
    session = pynng.Pair0()
    session.dial(door(location, where), block=True)
    return session


def gone(location: Location, where: str) -> bool:
    """Say whether nobody listens there any more."""
    try:
        raw(location, where).close()
    except OSError:
        return True
    return False


@contextlib.contextmanager
def undisturbed(place: Location) -> Iterator[Pair]:
    """A pair that works before and after, and sees nothing of what happens meanwhile."""
    with Pair(place) as pair:
        pair.meet()
        pair.at_server.clear()
        pair.at_client.clear()
        yield pair
        pair.to_server(b"undisturbed")
        pair.to_client(b"undisturbed")
        pair.until(lambda: b"undisturbed" in frames(pair.at_server) and frames(pair.at_client))
        assert [arrival for arrival in pair.at_server if arrival.peer == pair.peer] == [(pair.peer, b"undisturbed")]  # type: ignore[union-attr]
        assert pair.at_client == [(SERVER, b"undisturbed")]


def hangs_up(stranger: socket.socket, step: Callable[[], None]) -> None:
    """Wait until the other side has closed the connection."""
    stranger.setblocking(False)

    def closed() -> bool:
        try:
            return stranger.recv(4096) == b""
        except BlockingIOError:
            return False
        except ConnectionError:
            return True

    until(closed, step)


@pytest.mark.parametrize("nonsense", [b"", b"GET / HTTP/1.1", ASK + b" ", ASK[:-1], bytes(1000)])
def test_nonsense_in_the_lobby_is_answered_with_nothing(place: Location, nonsense: bytes) -> None:
    with undisturbed(place) as pair, pynng.Req0(dial=door(pair.location)) as stranger:
        stranger.send(nonsense)
        assert answered(stranger, pair.turn) == b""
        assert pair.at_server == []


def test_a_word_too_long_for_the_lobby_is_hung_up_on(place: Location) -> None:
    """nng closes the connection; the stranger tries again and again, and nothing is opened for it."""
    with undisturbed(place) as pair:
        attempts: list[object] = []
        with pynng.Req0(reconnect_time_min=1, reconnect_time_max=1) as stranger:
            stranger.add_post_pipe_connect_cb(attempts.append)
            stranger.dial(door(pair.location), block=True)
            stranger.send(ASK + bytes(2000))
            pair.until(lambda: len(attempts) > 3)
            with pytest.raises(pynng.TryAgain):
                stranger.recv(block=False)
        assert pair.at_server == []


@pytest.mark.parametrize("where", ["lobby", "session"])
@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\0SP\0\xff\xff\0\0", b"\0"])
def test_bytes_that_are_no_handshake_are_hung_up_on(
    place: Location, where: str, garbage: bytes, claims_within: Limit
) -> None:
    with undisturbed(place) as pair, claims_within(SOON):
        session = asked(pair.location, pair.turn)[1] if where == "session" else ""
        with raw(pair.location, session) as stranger:
            stranger.sendall(garbage)
            if garbage == b"\0" and not session:
                stranger.shutdown(socket.SHUT_WR)
            hangs_up(stranger, pair.turn)
        assert pair.at_server == []


def test_another_kind_of_socket_in_the_lobby_is_sent_away(place: Location) -> None:
    with undisturbed(place) as pair:
        left: list[object] = []
        with pynng.Pair0() as stranger:
            stranger.add_post_pipe_remove_cb(left.append)
            stranger.dial(door(pair.location), block=False)
            with contextlib.suppress(pynng.NNGException):
                stranger.send(ASK, block=False)
            pair.until(lambda: left)
        assert pair.at_server == []


# -- sessions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("comes", [False, True])
def test_a_session_that_nobody_claims_is_closed_in_time(place: Location, comes: bool, claims_within: Limit) -> None:
    """Two cases: nobody comes; somebody comes and says nothing."""
    with undisturbed(place) as pair, claims_within(SOON):
        _, where = asked(pair.location, pair.turn)
        stranger = opened(pair.location, where) if comes else pynng.Pair0()
        pair.until(lambda: gone(pair.location, where))
        stranger.close()
        assert pair.at_server == []


def test_a_session_told_to_nobody_does_not_wake_the_server_for_ever(tcp: Location, claims_within: Limit) -> None:
    server = transport_of(tcp).bind(tcp)
    with claims_within(SOON):
        _, where = asked(server.location, lambda: turn((server, [])))
    until(lambda: gone(server.location, where), lambda: turn((server, [])))
    assert server._due == float("inf")  # type: ignore[attr-defined]
    server.close(0.0)


def test_a_claim_is_heard_although_the_server_was_busy_when_its_time_ended(
    place: Location, claims_within: Limit
) -> None:
    """Many come while the server does something else; all that said their token in time are let in."""
    server = transport_of(place).bind(place)
    step = lambda: turn((server, []))  # noqa: E731
    with claims_within(DEADLINE):
        given = [asked(server.location, step) for _ in range(5)]
    sessions = [opened(server.location, where) for _, where in given]
    for session, (token, _) in zip(sessions, given, strict=True):
        session.send(token)
    link: Any = server
    assert len(link._unclaimed) == 5
    for channel in link._unclaimed:
        wait_until(lambda: select.select([channel], [], [], 0)[0])  # noqa: B023
        channel.deadline = time.monotonic()
    link._keep_time()
    arrivals: list[Arrival] = []
    turn((server, arrivals))
    assert [type(arrival) for arrival in arrivals] == [Up] * 5
    for session in sessions:
        session.close()
    server.close(0.0)


@pytest.mark.parametrize("word", [b"", b"x" * TOKEN, bytes(TOKEN), ASK, b"x" * 100_000])
def test_a_wrong_token_opens_nothing_and_ends_the_session(place: Location, word: bytes, claims_within: Limit) -> None:
    with undisturbed(place) as pair, claims_within(LONG):
        token, where = asked(pair.location, pair.turn)
        with opened(pair.location, where) as stranger:
            stranger.send(word)
            pair.until(lambda: gone(pair.location, where))
            assert word != token
        assert pair.at_server == []


def test_a_token_opens_no_other_session(place: Location, claims_within: Limit) -> None:
    with undisturbed(place) as pair, claims_within(LONG):
        token, _ = asked(pair.location, pair.turn)
        _, where = asked(pair.location, pair.turn)
        with opened(pair.location, where) as stranger:
            stranger.send(token)
            pair.until(lambda: gone(pair.location, where))
        assert pair.at_server == []


def test_a_token_opens_its_session_once(place: Location) -> None:
    """Whoever overheard it finds the door closed when the session is over."""
    with undisturbed(place) as pair:
        token, where = asked(pair.location, pair.turn)
        with opened(pair.location, where) as member:
            member.send(token)
            member.send(b"hello")
            pair.until(lambda: frames(pair.at_server))
        pair.until(lambda: losses(pair.at_server))
        assert [type(arrival).__name__ for arrival in pair.at_server] == ["Up", "Frame", "Down"]
        pair.until(lambda: gone(pair.location, where))
        with pytest.raises(pynng.NNGException):
            opened(pair.location, where)
        pair.at_server.clear()


def test_a_second_at_a_taken_session_is_sent_away(place: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows the token, and may not even disturb: the session is its first visitor's."""
    with undisturbed(place) as pair:
        (channel,) = pair.server._channels.values()  # type: ignore[attr-defined]
        (listener,) = channel.socket.listeners
        left: list[object] = []
        with pynng.Pair0(reconnect_time_min=1, reconnect_time_max=1) as stranger:
            stranger.add_post_pipe_remove_cb(left.append)
            stranger.dial(listener.url, block=False)
            with contextlib.suppress(pynng.NNGException):
                stranger.send(channel.token, block=False)
            pair.until(lambda: len(left) > 3)
        assert pair.at_server == pair.at_client == []


def test_a_client_whose_seat_was_taken_asks_for_another(place: Location, claims_within: Limit) -> None:
    """A stranger is at each session before the client, twice; the client is heard at the third."""
    server = transport_of(place).bind(place)
    client = transport_of(place).connect(server.location)
    at_server, at_client, strangers = list[Arrival](), list[Arrival](), list[Any]()
    link: Any = server
    give = link._give

    def give_away() -> bytes:
        answer: bytes = give()
        if len(strangers) < 2:
            strangers.append(opened(server.location, answer[TOKEN:].decode()))
            (*_, channel) = link._unclaimed
            wait_until(lambda: channel._visited)
        return answer

    def speak() -> None:
        turn((server, at_server), (client, at_client))
        client.send(SERVER, b"hello")  # what is sent to a seat that is taken is lost, and Down says so

    link._give = give_away
    with claims_within(SOON):
        until(lambda: len(strangers) == 2, speak)
    until(lambda: frames(at_server), speak)
    assert isinstance(at_server[0], Up)
    for stranger in strangers:
        stranger.close()
    client.close(0.0)
    server.close(0.0)


def test_a_frame_over_the_limit_ends_its_own_session_only(place: Location) -> None:
    """Our ends refuse to send such a frame; this one comes from something that speaks like a client."""
    with undisturbed(place.replace(options={"max_frame": "1KiB"})) as pair:
        token, where = asked(pair.location, pair.turn)
        with opened(pair.location, where) as member:
            member.send(token)
            pair.until(lambda: pair.at_server)
            member.send(bytes(100_000))
            pair.until(lambda: losses(pair.at_server))
        assert [type(arrival).__name__ for arrival in pair.at_server] == ["Up", "Down"]
        pair.at_server.clear()


def test_an_empty_frame_is_a_frame(place: Location) -> None:
    with Pair(place) as pair:
        pair.meet()
        for data in (b"", b"after", b""):
            pair.to_server(data)
            pair.to_client(data)
        pair.until(lambda: len(frames(pair.at_server)) == len(frames(pair.at_client)) == 3)
        assert frames(pair.at_server) == frames(pair.at_client) == [b"", b"after", b""]


# -- impostors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [b"", b"short", bytes(TOKEN), bytes(TOKEN) + b"\xff\xfe", bytes(TOKEN) + b"no port", bytes(4000), b"1" * 40],
)
def test_a_client_survives_a_lobby_that_answers_nonsense(place: Location, answer: bytes, claims_within: Limit) -> None:
    """It asks again, and comes up once a server is there."""
    with pynng.Rep0() as impostor:
        listener = impostor.listen(door(place, "" if place.path else "0"))
        port = None if place.path else socket.ntohs(listener.local_address.port)
        place = place.replace(port=port)
        client, at_client = transport_of(place).connect(place), list[Arrival]()
        with claims_within(SOON):
            for _ in range(3):
                assert answered(impostor, lambda: turn((client, at_client))) == ASK
                impostor.send(answer)
    server = transport_of(place).bind(place)
    assert at_client == []
    meet((server, []), (client, at_client))
    client.close(0.0)
    server.close(0.0)


def test_a_client_gives_up_a_lobby_that_is_silent(place: Location, claims_within: Limit) -> None:
    with pynng.Rep0() as impostor:
        listener = impostor.listen(door(place, "" if place.path else "0"))
        place = place.replace(port=None if place.path else socket.ntohs(listener.local_address.port))
        client, at_client = transport_of(place).connect(place), list[Arrival]()
        with claims_within(SOON):
            for _ in range(3):
                assert answered(impostor, lambda: turn((client, at_client))) == ASK
        assert at_client == []
        client.close(0.0)


# -- slowness --------------------------------------------------------------------------------------------------


def filled(writer: Link, to: Peer) -> int:
    """Send until nothing more is taken, not even after a moment for nng's threads; return how many were taken."""
    taken = refusals = 0
    while refusals < 5:
        if writer.send(to, bytes(10_000)) is Sent.ACCEPTED:
            taken, refusals = taken + 1, 0
        else:
            writer.wait(0.02)
            refusals += 1
    return taken


def test_a_slow_reader_is_full_and_holds_up_nobody(place: Location) -> None:
    with Pair(place) as pair:
        slow = pair.meet()
        other, kept = pair.transport.connect(pair.location), list[Arrival]()
        quick = meet((pair.server, []), (other, kept))
        taken = filled(pair.server, slow)
        for number in range(200):
            until(lambda: pair.server.send(quick, b"past the queue") is Sent.ACCEPTED, lambda: turn((other, kept)))
            until(lambda: len(frames(kept)) == number + 1, lambda: turn((other, kept)))  # noqa: B023
        taken += filled(pair.server, slow)  # the kernel may have made some room
        pair.until(lambda: len(frames(pair.at_client)) == taken)
        pair.to_client(b"room again")
        pair.until(lambda: len(frames(pair.at_client)) == taken + 1)
        other.close(0.0)


def test_a_wait_does_not_spin_for_a_peer_that_nobody_sends_to_any_more(tcp: Location) -> None:
    """Two cases: it stays full; it has room again, which is told once."""
    with Pair(tcp) as pair:
        pair.meet()
        taken = filled(pair.client, SERVER)
        assert waits(pair.client, 0.3) < 20
        until(lambda: len(frames(pair.at_server)) == taken, lambda: turn((pair.server, pair.at_server)))
        assert waits(pair.client, 0.3) < 20


def waits(link: Link, seconds: float) -> int:
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


def test_a_writer_without_a_descriptor_is_told_of_room_all_the_same(place: Location) -> None:
    with Pair(place) as pair:
        pair.meet()
        with no_descriptor_left():
            taken = filled(pair.client, SERVER)
            while pair.client.send(SERVER, b"more") is Sent.ACCEPTED:
                taken += 1  # nng's own threads had moved some on
        accepted = threading.Event()

        def write() -> None:
            while pair.client.send(SERVER, b"at last") is Sent.FULL:
                pair.client.wait(LONG)
            accepted.set()

        writing = threading.Thread(target=in_time, args=(write, pair.client))
        writing.start()
        until(accepted.is_set, lambda: turn((pair.server, pair.at_server)))
        writing.join(DEADLINE)
        pair.client.owner = threading.get_ident()
        pair.until(lambda: len(frames(pair.at_server)) == taken + 1)


@pytest.mark.parametrize("towards", ["server", "client"])
def test_close_lingers_for_what_was_accepted(place: Location, towards: str) -> None:
    """The writer closes with its queue full; the reader begins to read only then."""
    with Pair(place) as pair:
        peer = pair.meet()
        writer, to = (pair.client, SERVER) if towards == "server" else (pair.server, peer)
        reader, kept = (pair.server, pair.at_server) if towards == "server" else (pair.client, pair.at_client)
        data = os.urandom(10_000)
        taken = 0
        while writer.send(to, data) is Sent.ACCEPTED:
            taken += 1
        closing = threading.Thread(target=in_time, args=(lambda: writer.close(DEADLINE), writer))
        closing.start()
        until(lambda: Down in map(type, kept), lambda: turn((reader, kept)))
        closing.join(DEADLINE)
        assert frames(kept) == [data] * taken


# -- many ------------------------------------------------------------------------------------------------------


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_many_come_at_once_and_leave_nothing_behind(place: Location) -> None:
    """A hundred clients: each has a token of its own, hears what is meant for it, and costs nothing once it is gone."""
    with Pair(place) as warm:
        warm.meet()
    before, threads_before = descriptors(), threads()
    server = transport_of(place).bind(place)
    at_server: list[Arrival] = []
    ends: list[tuple[Link, list[Arrival]]] = [
        (transport_of(place).connect(server.location), []) for _ in range(MEMBERS)
    ]

    def step() -> None:
        for link, kept in [(server, at_server), *ends]:
            while (arrival := link.receive()) is not None:
                kept.append(arrival)
        server.wait(0.01)

    until(lambda: all(kept for _, kept in ends), step)
    for number, (link, _) in enumerate(ends):
        assert link.send(SERVER, b"%d" % number) is Sent.ACCEPTED
    until(lambda: len(frames(at_server)) == MEMBERS, step)
    callers = {arrival.data: arrival.peer for arrival in at_server if isinstance(arrival, Frame)}
    assert len(set(callers.values())) == MEMBERS
    for data, peer in callers.items():
        assert server.send(peer, b"to " + data) is Sent.ACCEPTED
    until(lambda: all(frames(kept) for _, kept in ends), step)
    assert [frames(kept) for _, kept in ends] == [[b"to %d" % number] for number in range(MEMBERS)]
    for link, _ in ends:
        link.close(0.0)
    until(lambda: len(losses(at_server)) == MEMBERS, lambda: turn((server, at_server)))
    server.close(0.0)
    wait_until(lambda: descriptors() <= before)
    assert threads() <= threads_before


def test_what_is_asked_for_at_once_has_a_bound(tcp: Location) -> None:
    """A crowd that asks and never comes costs a bounded number of descriptors."""
    server = transport_of(tcp).bind(tcp)
    before = descriptors()
    strangers = [pynng.Req0(dial=door(server.location)) for _ in range(20)]
    connections = descriptors() - before
    link: Any = server
    for _ in range(10):
        for stranger in strangers:
            stranger.send(ASK)
        for stranger in strangers:
            answered(stranger, lambda: turn((server, [])))
    unclaimed = len(link._unclaimed)
    assert 100 <= unclaimed <= 128
    assert descriptors() - before - connections <= 3 * unclaimed
    for stranger in strangers:
        stranger.close()
    server.close(0.0)


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


def test_a_server_out_of_descriptors_refuses_and_recovers(place: Location) -> None:
    """With no descriptor left newcomers are told to come again; once there is one, they are let in."""
    with undisturbed(place) as pair, pynng.Req0(dial=door(pair.location)) as lobby:
        before = descriptors()
        with no_descriptor_left():
            for _ in range(5):
                lobby.send(ASK)
                assert answered(lobby, pair.turn) == b""
        gc.collect()
        wait_until(lambda: descriptors() <= before)
        lobby.send(ASK)
        answer = answered(lobby, pair.turn)
        with opened(pair.location, answer[TOKEN:].decode()) as member:
            member.send(answer[:TOKEN])
            pair.until(lambda: pair.at_server)


def test_a_client_out_of_descriptors_asks_again(place: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has none for the session that it was given, three times, and comes up at the fourth."""
    from remit_nng.channel import Channel

    refusals: list[object] = []

    def scarce(*arguments: Any) -> Channel:
        if len(refusals) < 3:
            refusals.append(arguments)
            raise pynng.OutOfFiles("Out of files", 24)
        return Channel(*arguments)

    monkeypatch.setattr("remit_nng.client.Channel", scarce)
    with Pair(place) as pair:
        pair.meet()
        assert len(refusals) == 3
        assert [type(arrival) for arrival in pair.at_client] == [Up]


@pytest.mark.parametrize("verb", ["bind", "connect"])
def test_out_of_descriptors_is_said(place: Location, path: Path, verb: str) -> None:
    with Pair(place) as pair:
        pair.meet()
        other = Location(f"nng+ipc://{path}2") if place.path else place.replace(port=0 if verb == "bind" else 1)
        before = descriptors()
        said_by_the_claim = verb == "bind" and place.path
        words = "Too many open files" if said_by_the_claim else "ulimit -n"
        with no_descriptor_left(), pytest.raises(TransportError, match=words):
            getattr(pair.transport, verb)(other)
        gc.collect()
        assert descriptors() <= before


def test_no_descriptor_passes_to_a_program(place: Location) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    with Pair(place) as pair:
        pair.meet()
        ours = [
            entry for entry in set(Path("/proc/self/fd").iterdir()) - before if entry.exists() or entry.is_symlink()
        ]
        assert len(ours) >= 5
        assert not [entry for entry in ours if os.get_inheritable(int(entry.name))]


# -- whose place it is -----------------------------------------------------------------------------------------


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
        before = descriptors()
        for _ in range(5):
            with pytest.raises(LocationInUse):
                pair.transport.bind(pair.location)
        gc.collect()
        assert descriptors() <= before


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
    with pytest.raises(BadLocation, match="the server's own"):
        transport_of(Location(url)).connect(Location(url))


def test_an_unknown_option_is_told_its_nearest(place: Location) -> None:
    for verb in ("bind", "connect"):
        with pytest.raises(UnknownOption, match="'max_frame'"):
            getattr(transport_of(place), verb)(Location(place.url, max_frames="1MiB"))


def test_a_host_without_an_address_is_said() -> None:
    place = Location("nng+tcp://nowhere.invalid:5555")
    with pytest.raises(TransportError, match="is the address this host's own"):
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


# -- forks and ends --------------------------------------------------------------------------------------------


def program(code: str) -> subprocess.CompletedProcess[str]:
    """Run a program that imports `links`; it must end by itself."""
    command = [
        sys.executable,
        "-W",
        "ignore::DeprecationWarning",
        "-c",
        f"import sys; sys.path.insert(0, {str(SUPPORT)!r})\n{textwrap.dedent(code)}",
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=2 * DEADLINE, check=False)


FORK = """
import gc, os, pickle
from links import Pair, frames, transport_of
from remit import Location
from remit.errors import ForkedLinkError, TransportError
from remit.transport import SERVER

def child(work):
    pid = os.fork()
    if pid == 0:
        work()
        sys.exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7

def refused(call, error, word):
    try:
        call()
    except error as refusal:
        assert word in str(refusal), refusal
        return
    raise AssertionError(call)

place = Location("nng+tcp://127.0.0.1:0")
gc.disable()
"""


def test_a_forked_child_opens_nothing_and_ends_like_any_other() -> None:
    """nng would abort it: at its first use, when what it inherited is collected, or as it ends by itself."""
    done = program(
        FORK
        + """
def inherit():
    refused(pair.client.receive, ForkedLinkError, "before a fork")
    for verb in (pair.transport.bind, pair.transport.connect):
        refused(lambda: verb(pair.location), TransportError, "spawn")
    pair.close()
    gc.collect()
    child(lambda: refused(lambda: pair.transport.bind(place), TransportError, "spawn"))

with Pair(place) as early:
    early.meet()
    for _ in range(3):  # what has ended leaves something to collect
        other = early.transport.connect(early.location)
        other.close(0.0)
        early.turn()
del early, other
pair = Pair(place)
pair.meet()
child(inherit)
child(lambda: None)
pair.to_server(b"still here")
pair.to_client(b"still there")
pair.until(lambda: frames(pair.at_server) and frames(pair.at_client))
pair.close()
child(gc.collect)
del pair
child(gc.collect)
print("ok")
"""
    )
    assert (done.stdout, done.stderr, done.returncode) == ("ok\n", "", 0)


def test_a_process_forked_before_nng_was_used_may_use_it() -> None:
    done = program(
        FORK
        + """
transport_of(place)

def use():
    with Pair(place) as pair:
        pair.meet()

child(use)
use()
print("ok")
"""
    )
    assert (done.stdout, done.stderr, done.returncode) == ("ok\n", "", 0)


@pytest.mark.parametrize("ends", ["pass", "sys.exit(0)", "del pair; gc.collect()", "pair.client.close(0.0)"])
def test_a_program_that_forgets_to_close_ends_all_the_same(ends: str) -> None:
    done = program(
        f"import gc\nfrom remit import Location\nfrom links import *\npair = Pair(Location('nng+tcp://127.0.0.1:0'))\npair.meet()\n{ends}"
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_importing_the_plugin_imports_no_backend() -> None:
    """A program that uses another transport does not pay for this one."""
    done = program("import remit_nng; print(sorted({'pynng', 'cffi'} & set(sys.modules)))")
    assert (done.stdout, done.stderr) == ("[]\n", "")
