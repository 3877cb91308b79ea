"""Sessions over nng: claimed once, in time, by whoever was told the token, or by nobody."""

from __future__ import annotations

import contextlib
import select
import time
from typing import Any

import pytest
from links import DEADLINE, LONG, Pair, frames, losses, transport_of, turn, until
from nng_strangers import (
    ASK,
    SOON,
    TOKEN,
    Limit,
    asked,
    gone,
    opened,
    pynng,
    undisturbed,
)
from waiting import wait_until

from remit import Location
from remit.transport import SERVER, Arrival, Up


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
    assert server.next_deadline == float("inf")  # type: ignore[attr-defined]
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
    assert len(link.unclaimed) == 5
    for channel in link.unclaimed:
        wait_until(lambda: select.select([channel.descriptor], [], [], 0)[0])  # noqa: B023
        channel.deadline = time.monotonic()
    link.handle_deadline()
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
        (channel,) = pair.server.channels.values()  # type: ignore[attr-defined]
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
    give = link.open_channel

    def give_away() -> bytes:
        answer: bytes = give()
        if len(strangers) < 2:
            strangers.append(opened(server.location, answer[TOKEN:].decode()))
            (*_, channel) = link.unclaimed
            wait_until(lambda: channel.has_peer)
        return answer

    def speak() -> None:
        turn((server, at_server), (client, at_client))
        client.send(SERVER, b"hello")  # what is sent to a seat that is taken is lost, and Down says so

    link.open_channel = give_away
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
