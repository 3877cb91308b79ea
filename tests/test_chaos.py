"""Chaos around every transport: frames are spoiled as asked and as the seed says; the ends make up for all of it."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Mapping

import pytest
from links import Pair, frames, put
from waiting import tick_until

from remit import Client, Location, Server
from remit.errors import BadLocation, FrameTooLarge, LinkClosed, TransportNotInstalled, UnknownOption
from remit.plugins import (
    block_transport,
    find_transport,
    installed_transports,
    register_transport,
    unblock_transport,
    unregister_transport,
)
from remit.sender import Sender
from remit.transport import SERVER, Arrival, Capabilities, Down, Frame, OwnedLink, Peer, Sent, Up, Wakeable
from remit.transports import chaoslink
from remit.transports.chaos import ChaosTransport
from remit.transports.memory import MemoryTransport

EVENTS = 2000
BURST = 100
"""Events between two ticks: there are many frames to spoil."""
STORM = {"seed": 11, "loss": 0.2, "duplication": 0.1, "reorder": 0.05, "delay": "1ms", "cut": 0.005}
PATIENCE = 50.0
"""Seconds: at such a loss some wait for their turn to be asked again several times."""
BRISK = {"heartbeat": "300ms", "linger": "20s"}
"""A connection that was cut is noticed soon."""


def chaotic(location: Location, **options: object) -> Location:
    return location.replace(
        scheme=f"chaos+{location.scheme}",
        options=dict(location.options) | {name: str(value) for name, value in options.items()},
    )


@pytest.fixture
def storm(location: Location) -> Location:
    return chaotic(location, **STORM, **BRISK)


# -- the ends make up for it -----------------------------------------------------------------------------------


@pytest.mark.timeout(120)
def test_all_events_reach_the_server_once_and_in_order(storm: Location) -> None:
    heard: list[int] = []
    with Server(storm) as server, Client(server.location) as client:
        server.add_listener("n", heard.append)
        for number in range(EVENTS):
            client.emit("n", number)
            if number % BURST == 0:
                server.tick()
                server.wait(0.001)
        tick_until(server, lambda: len(heard) >= EVENTS and client.stats()["unconfirmed"] == 0, PATIENCE)
        assert client.flush()
    assert heard == list(range(EVENTS))


@pytest.mark.timeout(120)
def test_all_events_reach_the_client_once_and_in_order(storm: Location) -> None:
    heard: list[int] = []
    senders: list[Sender] = []
    with Server(storm) as server, Client(server.location) as client:
        client.add_listener("n", heard.append)
        server.add_listener("here", lambda event: senders.append(event.sender), pass_event=True)
        client.emit("here")
        tick_until(server, lambda: senders, PATIENCE)
        for number in range(EVENTS):
            senders[0].emit("n", number)
            if number % BURST == 0:
                server.tick()
                server.wait(0.001)
        tick_until(server, lambda: len(heard) >= EVENTS, PATIENCE)
    assert heard == list(range(EVENTS))


# -- decisions -------------------------------------------------------------------------------------------------


class Notebook(OwnedLink):
    """A link that only writes down what it is asked to send."""

    def __init__(self, location: Location, capabilities: Capabilities) -> None:
        super().__init__(location, capabilities)
        self.sent: list[tuple[Peer, bytes]] = []
        self.waits: list[float] = []
        self.arrivals: deque[Arrival] = deque()
        self.answer = Sent.ACCEPTED
        self.closed = 0

    def send(self, peer: Peer, frame: bytes) -> Sent:
        self._check(frame)
        if self.answer is Sent.ACCEPTED:
            self.sent.append((peer, frame))
        return self.answer

    def receive(self) -> Arrival | None:
        return self.arrivals.popleft() if self.arrivals else None

    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        self.waits.append(timeout)

    def close(self, linger: float) -> None:
        self.closed += self._ending()


class Stationer:
    """A transport of notebooks."""

    capabilities = Capabilities(max_frame=100)
    options: Mapping[str, object] = {"paper": str}

    def __init__(self) -> None:
        self.made: list[Notebook] = []
        self.asked: list[Location] = []

    def bind(self, location: Location) -> Notebook:
        self.asked.append(location)
        self.made.append(Notebook(location, self.capabilities))
        return self.made[-1]

    def connect(self, location: Location) -> Notebook:
        link = self.bind(location)
        link.arrivals.append(Up(SERVER))
        return link


class Desk:
    """A chaos link over notebooks, under a clock that stands still."""

    def __init__(self, end: str, query: str) -> None:
        self.inner = Stationer()
        self.link = getattr(ChaosTransport("note", self.inner), end)(Location(f"chaos+note://x?{query}"))
        self.peer: Peer = SERVER if end == "connect" else "p"
        if end == "connect":
            assert self.link.receive() == Up(SERVER)

    def send(self, *numbers: int) -> list[Sent]:
        return [self.link.send(self.peer, b"%d" % number) for number in numbers]

    @property
    def sent(self) -> list[int]:
        return [int(frame) for book in self.inner.made for _, frame in book.sent]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    now = types.SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(chaoslink, "time", types.SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def outcome(end: str, query: str) -> list[int]:
    desk = Desk(end, query)
    desk.send(*range(500))
    return desk.sent


ALL = "loss=0.2&duplication=0.1&reorder=0.1"


@pytest.mark.parametrize("end", ["bind", "connect"])
def test_the_same_seed_makes_the_same_decisions(end: str, clock: types.SimpleNamespace) -> None:
    assert outcome(end, f"seed=5&{ALL}") == outcome(end, f"seed=5&{ALL}")
    assert outcome(end, f"seed=5&{ALL}") != outcome(end, f"seed=6&{ALL}")


def test_the_two_ends_decide_differently(clock: types.SimpleNamespace) -> None:
    assert outcome("bind", ALL) != outcome("connect", ALL)


def test_one_option_leaves_the_decisions_of_another_alone(clock: types.SimpleNamespace) -> None:
    assert set(outcome("bind", "seed=5&loss=0.2")) == set(outcome("bind", "seed=5&loss=0.2&duplication=0.5"))


def test_a_full_wire_changes_no_decision(clock: types.SimpleNamespace) -> None:
    desk = Desk("bind", f"seed=5&{ALL}")
    for number in range(500):
        desk.inner.made[0].answer = Sent.FULL
        taken = desk.send(number) == [Sent.ACCEPTED]
        desk.inner.made[0].answer = Sent.ACCEPTED
        if not taken:
            assert desk.send(number) == [Sent.ACCEPTED]
    assert sorted(desk.sent) == sorted(outcome("bind", f"seed=5&{ALL}"))


# -- the faults, one by one ------------------------------------------------------------------------------------


def test_nothing_asked_nothing_spoiled(clock: types.SimpleNamespace) -> None:
    assert outcome("bind", "") == list(range(500))


def test_lost_frames_count_as_taken(clock: types.SimpleNamespace) -> None:
    desk = Desk("connect", "loss=0.2")
    assert set(desk.send(*range(500))) == {Sent.ACCEPTED}
    assert 350 < len(desk.sent) < 450
    assert desk.sent == sorted(desk.sent)


def test_duplicates_come_right_behind(clock: types.SimpleNamespace) -> None:
    numbers = outcome("connect", "duplication=0.2")
    assert 550 < len(numbers) < 650
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(500))


def test_an_overtaken_frame_leaves_behind_the_next(clock: types.SimpleNamespace) -> None:
    desk = Desk("connect", "reorder=1")
    desk.send(1, 2, 3, 4)
    assert desk.sent == [2, 1, 4, 3]


def test_an_overtaken_frame_leaves_although_nothing_comes(clock: types.SimpleNamespace) -> None:
    desk = Desk("connect", "reorder=1")
    desk.send(1)
    assert desk.sent == []
    desk.link.wait(3600.0)
    assert desk.inner.made[0].waits == [pytest.approx(chaoslink.OVERTAKEN)]
    clock.seconds += chaoslink.OVERTAKEN
    desk.link.wait(3600.0)
    assert desk.sent == [1]


def test_delayed_frames_keep_their_order(clock: types.SimpleNamespace) -> None:
    desk = Desk("bind", "delay=1s")
    desk.send(*range(100))
    assert desk.sent == []
    seen = 0
    for _ in range(100):
        clock.seconds += 0.01
        assert desk.link.receive() is None
        assert desk.sent == list(range(len(desk.sent)))
        seen += len(desk.sent) not in (0, 100)
    assert seen
    assert desk.sent == list(range(100))


def test_what_is_held_back_has_a_bound(clock: types.SimpleNamespace) -> None:
    desk = Desk("bind", "delay=1s")
    assert desk.send(*range(chaoslink.HELD + 1))[-1] is Sent.FULL
    clock.seconds += 1.0
    assert desk.send(7) == [Sent.ACCEPTED]


def test_a_held_frame_waits_for_room_without_spinning(clock: types.SimpleNamespace) -> None:
    desk = Desk("bind", "delay=1s")
    desk.send(1, 2)
    desk.inner.made[0].answer = Sent.FULL
    clock.seconds += 1.0
    desk.link.wait(60.0)
    assert desk.inner.made[0].waits == [60.0]
    desk.inner.made[0].answer = Sent.ACCEPTED
    desk.link.wait(60.0)
    assert desk.sent == [1, 2]


def test_closing_lets_go_of_what_is_held_back(clock: types.SimpleNamespace) -> None:
    desk = Desk("bind", "delay=1s&reorder=0.3")
    desk.send(*range(20))
    desk.link.close(1.0)
    desk.link.close(1.0)
    assert sorted(desk.sent) == list(range(20))
    assert desk.inner.made[0].closed == 1
    with pytest.raises(LinkClosed):
        desk.send(1)


def test_a_cut_ends_the_clients_connection_and_begins_another(clock: types.SimpleNamespace) -> None:
    desk = Desk("connect", "cut=1")
    assert desk.send(1, 2) == [Sent.ACCEPTED, Sent.GONE]
    assert isinstance(desk.link.receive(), Down)
    assert desk.send(3) == [Sent.GONE]
    assert desk.link.receive() == Up(SERVER)
    assert [book.closed for book in desk.inner.made] == [1, 0]
    assert desk.sent == []


def test_a_cut_gives_the_servers_peer_another_token(clock: types.SimpleNamespace) -> None:
    desk = Desk("bind", "seed=2&cut=0.5")
    book = desk.inner.made[0]
    book.arrivals.append(Up("p"))
    tokens: list[Peer] = ["p"]
    assert desk.link.receive() == Up("p")
    while len(tokens) < 4:
        desk.peer = tokens[-1]
        desk.send(0)
        if isinstance(down := desk.link.receive(), Down):
            assert down.peer == tokens[-1]
            up = desk.link.receive()
            assert isinstance(up, Up)
            tokens.append(up.peer)
            assert desk.link.send(down.peer, b"1") is Sent.GONE
    assert len(set(tokens)) == 4
    book.arrivals.extend([Frame("p", b"still the same"), Down("p", "really")])
    assert desk.link.receive() == Frame(tokens[-1], b"still the same")
    assert desk.link.receive() == Down(tokens[-1], "really")


def test_faults_on_a_real_wire(location: Location) -> None:
    with Pair(chaotic(location, seed=3, loss=0.3, duplication=0.3)) as pair:
        put(pair.client, SERVER, b"first", pair.turn)
        for number in range(400):
            put(pair.client, SERVER, b"%d" % number, pair.turn)
        put(pair.client, SERVER, b"a" * 10, pair.turn)
        expected = outcome("connect", "seed=3&loss=0.3&duplication=0.3")
        pair.until(lambda: len(frames(pair.at_server)) > 200)
        assert len(set(expected)) < 400
        assert len(set(frames(pair.at_server))) < 400


# -- finding and options ---------------------------------------------------------------------------------------


def test_chaos_is_found_around_any_transport_and_never_listed() -> None:
    transport = find_transport("chaos+unix")
    assert transport.capabilities.lossy
    assert not find_transport("unix").capabilities.lossy
    assert set(transport.options) == {"max_frame", "seed", "loss", "duplication", "reorder", "delay", "cut"}
    assert not [claim for claim in installed_transports() if claim.scheme.startswith("chaos")]


def test_chaos_wraps_what_is_registered_now() -> None:
    ours = MemoryTransport()
    ours.capabilities = Capabilities(max_frame=12345)
    register_transport("desk", ours)
    try:
        assert find_transport("chaos+desk").capabilities.max_frame == 12345
    finally:
        unregister_transport("desk")
    with pytest.raises(TransportNotInstalled, match="'desk'"):
        find_transport("chaos+desk")


def test_chaos_around_what_is_not_there_says_what_is_missing() -> None:
    with pytest.raises(TransportNotInstalled, match=r"no transport for 'unixx' is installed.*did you mean 'unix'"):
        Server("chaos+unixx:///tmp/a.sock")


@pytest.mark.parametrize("blocked", ["unix", "chaos+unix"])
def test_blocking_reaches_chaos_too(blocked: str) -> None:
    block_transport(blocked)
    try:
        with pytest.raises(TransportNotInstalled, match="blocked"):
            find_transport("chaos+unix")
    finally:
        unblock_transport(blocked)


@pytest.mark.parametrize(
    ("query", "error", "reason"),
    [
        ("loss=1.5", BadLocation, "loss='1.5'.*from 0 to 1"),
        ("loss=nan", BadLocation, "loss='nan'.*from 0 to 1"),
        ("cut=-0.1", BadLocation, "cut='-0.1'.*from 0 to 1"),
        ("reorder=often", BadLocation, "reorder='often'"),
        ("seed=-1", BadLocation, "seed='-1'.*whole number from 0"),
        ("delay=soon", BadLocation, "delay='soon'"),
        ("lost=0.1", UnknownOption, "'lost'.*'loss'"),
        ("capacity=none", BadLocation, "capacity='none'"),
    ],
)
def test_bad_options_are_refused(query: str, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        Server(f"chaos+memory://options?{query}")


def test_the_wrapped_transport_gets_its_own_options_only(clock: types.SimpleNamespace) -> None:
    desk = Desk("bind", "paper=white&loss=0.1&seed=4")
    assert desk.inner.asked == [Location("note://x?paper=white")]
    assert desk.link.location == Location("chaos+note://x?paper=white&loss=0.1&seed=4")


def test_frames_over_the_limit_are_refused_first(clock: types.SimpleNamespace) -> None:
    with pytest.raises(FrameTooLarge):
        Desk("bind", "loss=1").link.send("p", b"x" * 101)
