"""Faults: each as it was asked for, and decided by the seed alone."""

from __future__ import annotations

import types

import pytest
from stationery import Desk, outcome

from remit.errors import LinkClosed
from remit.transport import SERVER, Down, Frame, Peer, Sent, Up
from remit.transports import chaos

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
    assert desk.inner.made[0].waits == [pytest.approx(chaos.REORDER_TIMEOUT_S)]
    clock.seconds += chaos.REORDER_TIMEOUT_S
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
    assert desk.send(*range(chaos.MAX_DELAYED + 1))[-1] is Sent.FULL
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
