"""Connections to Redis: it is not there, dies and comes back, refuses, is silent, or cuts them."""

from __future__ import annotations

import errno
import socket
import threading
from pathlib import Path

import pytest
from redis_ends import arrive, pair, transport, until, works
from redis_server import Redis
from remit_redis import connection

from remit.errors import TransportError
from remit.location import Location
from remit.transport import SERVER, Down, Sent, Up, Waker


def test_redis_dies_in_mid_stream_and_comes_back(redis: Redis) -> None:
    """Both ends notice, what arrived is a prefix of what was sent, and both come up again with a new token."""
    server, client, peer = pair(redis.location)
    accepted = 0
    while accepted < 20_000:
        if accepted == 10_000:
            redis.kill()
        if client.send(SERVER, b"%d" % accepted) is not Sent.ACCEPTED:
            break
        accepted += 1
    assert arrive(client, Down)[0].peer == SERVER
    down, before = arrive(server, Down)
    assert down.peer == peer
    assert [frame.data for frame in before] == [b"%d" % number for number in range(len(before))]
    assert client.send(SERVER, b"lost") is Sent.GONE
    assert server.send(peer, b"lost") is Sent.GONE

    redis.start()
    arrive(client, Up, server)
    again, between = arrive(server, Up)
    assert again.peer != peer
    assert between == []
    works(server, client, again.peer)
    server.close(1)
    client.close(1)


def test_both_ends_come_back_once_there_are_descriptors_again(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[str] = []

    def exhausted() -> Waker:
        tries.append("pipe")
        raise OSError(errno.EMFILE, "Too many open files")

    server, client, _ = pair(redis.location)
    monkeypatch.setattr(connection, "Waker", exhausted)
    redis.kill()
    arrive(client, Down, server)
    until(lambda: (client.receive(), server.receive(), len(tries) > 4)[2])
    monkeypatch.undo()
    redis.start()
    arrive(client, Up, server)
    works(server, client, arrive(server, Up)[0].peer)
    server.close(1)
    client.close(1)


def test_a_client_may_be_there_first(absent: Redis) -> None:
    """Redis and the server may both be started after the client."""
    redis = absent
    client = transport.connect(redis.location)
    assert client.send(SERVER, b"early") is Sent.GONE
    redis.start()
    client.wait(0.05)
    server = transport.bind(redis.location)
    arrive(client, Up)
    works(server, client, arrive(server, Up)[0].peer)
    client.close(1)
    server.close(1)


def test_bind_without_redis_says_what_to_check(absent: Redis) -> None:
    """A server cannot begin without Redis; its password is not told."""
    with pytest.raises(TransportError, match="check that redis-server runs") as caught:
        transport.bind(Location(f"redis://me:secret@127.0.0.1:{absent.port}"))
    assert "secret" not in repr(caught.value)


def test_a_wrong_password_is_raised_and_not_told(redis: Redis) -> None:
    """Neither end waits for what cannot come."""
    redis.say("CONFIG", "SET", "requirepass", "right")
    host = f"127.0.0.1:{redis.port}"
    for open_link in (transport.bind, transport.connect):
        with pytest.raises(TransportError, match="password") as caught:
            open_link(Location(f"redis://:secret@{host}"))
        assert "secret" not in str(caught.value)
        with pytest.raises(TransportError, match="NOAUTH"):
            open_link(Location(f"redis://{host}"))
    server, client, peer = pair(Location(f"redis://:right@{host}"))
    works(server, client, peer)
    server.close(1)
    client.close(1)


def test_a_user_needs_no_more_than_the_readme_says(redis: Redis) -> None:
    """The least privileges are enough, and with less the error points to them."""
    text = (Path(__file__).parents[3] / "plugins" / "redis" / "README.md").read_text()
    rules = next(line for line in text.splitlines() if line.startswith("ACL SETUSER")).split()
    assert redis.say(*rules) == b"OK"
    location = Location(f"redis://events:secret@127.0.0.1:{redis.port}/0")
    server, client, peer = pair(location)
    works(server, client, peer)
    client.close(1)
    server.close(1)
    redis.say(*rules, "-eval", "-get")
    for open_link in (transport.bind, transport.connect):
        with pytest.raises(TransportError, match=r"NOPERM.*README"):
            open_link(location)


def test_a_host_that_takes_connections_and_is_silent_blocks_nobody(redis: Redis) -> None:
    """Connecting returns, the verbs go on, and closing leaves no thread behind."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = transport.connect(Location(f"redis://127.0.0.1:{silent.getsockname()[1]}"))
        assert client.receive() is None
        assert client.send(SERVER, b"") is Sent.GONE
        client.wait(0.01)
        client.close(1)
    until(lambda: all(thread.name != "remit-redis-dial" for thread in threading.enumerate()))


@pytest.mark.parametrize("end", ["server", "client"])
def test_a_killed_connection_is_a_down_and_an_up(redis: Redis, end: str) -> None:
    """Pub/sub forgets: whoever loses its connection has lost frames, and both ends must know."""
    server, client, peer = pair(redis.location)
    names = {
        "server": redis.say("PUBSUB", "CHANNELS", "*:hub:*"),
        "client": redis.say("PUBSUB", "CHANNELS", "*:inbox:*"),
    }
    assert len(names[end]) == 1
    # The server connected first: its connection has the lower id.
    ids = sorted(
        int(line.split()[0][3:]) for line in redis.say("CLIENT", "LIST").decode().splitlines() if " name=remit " in line
    )
    redis.say("CLIENT", "KILL", "ID", ids[end == "client"])
    if end == "server":  # it comes back before the client looks
        assert arrive(server, Down)[0].peer == peer
        until(lambda: [server.wait(0.01), redis.say("PUBSUB", "CHANNELS", "*:hub:*")][1])
        assert arrive(client, Down)[0].peer == SERVER
    else:
        assert arrive(client, Down)[0].peer == SERVER
        assert arrive(server, Down, client)[0].peer == peer
    arrive(client, Up, server)
    again = arrive(server, Up, client)[0].peer
    assert again != peer
    works(server, client, again)
    server.close(1)
    client.close(1)
