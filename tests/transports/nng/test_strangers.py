"""Strangers in nng's lobby, and lobbies that are none."""

from __future__ import annotations

import contextlib
import socket

import pytest
from links import meet, transport_of, turn
from nng_strangers import (
    ASK,
    SOON,
    TOKEN,
    Limit,
    answered,
    asked,
    door,
    hangs_up,
    pynng,
    raw,
    undisturbed,
)

from remit import Location
from remit.transport import Arrival


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
