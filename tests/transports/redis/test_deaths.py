"""Deaths over Redis: who was killed or stopped is missed, and a location is held as long as its lease."""

from __future__ import annotations

from typing import Any

import pytest
from redis_ends import arrive, child, pair, transport, until, works
from redis_server import Redis

from remit.errors import LocationInUse
from remit.transport import SERVER, Down, Frame, Sent, Up


def test_a_killed_client_is_noticed_without_sending(redis: Redis) -> None:
    """The server's end sees its peers go by itself."""
    server = transport.bind(redis.location.replace(options={"lease": "300ms"}))
    with child("connect", redis.location, beside=server) as process:
        peer = arrive(server, Up)[0].peer
        process.kill()
        assert arrive(server, Down)[0].peer == peer
    assert server.send(peer, b"") is Sent.GONE
    server.close(1)


def test_a_killed_client_is_noticed_when_redis_finds_no_reader(redis: Redis) -> None:
    """Sending to it ends in Down long before the server would have looked."""
    server = transport.bind(redis.location.replace(options={"lease": "1000s"}))
    with child("connect", redis.location) as process:
        peer = arrive(server, Up)[0].peer
        process.kill()
        process.wait()
        until(lambda: not redis.say("PUBSUB", "CHANNELS", "*:inbox:*"))
        assert server.send(peer, b"anybody?") is Sent.ACCEPTED
        assert arrive(server, Down)[0].peer == peer
    server.close(1)


def test_a_killed_server_is_noticed_when_redis_finds_no_reader(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends does not wait for the next time that it would have asked."""
    client: Any = transport.connect(redis.location)
    monkeypatch.setattr(client, "period", 1000.0)
    with child("bind", redis.location) as process:
        arrive(client, Up)
        client.wait(0)
        client.heartbeat_at += 1000.0
        process.kill()
        process.wait()
        until(lambda: not redis.say("PUBSUB", "CHANNELS", "*:hub:*"))
        assert client.send(SERVER, b"anybody?") is Sent.ACCEPTED
        assert arrive(client, Down)[0].peer == SERVER
    client.close(1)


def test_a_killed_server_keeps_its_location_until_its_lease_ends(redis: Redis) -> None:
    """Its successor waits for that, and the clients that it left find the successor."""
    location = redis.location.replace(options={"lease": "500ms"})
    client = transport.connect(redis.location)
    with child("bind", location) as process:
        arrive(client, Up)
        with pytest.raises(LocationInUse):
            transport.bind(location)
        process.kill()
        process.wait()
        server = transport.bind(location)
    assert arrive(client, Down)[0].peer == SERVER
    arrive(client, Up)
    works(server, client, arrive(server, Up)[0].peer)
    client.close(1)
    server.close(1)


def test_a_stopped_server_loses_its_location_and_is_told(redis: Redis) -> None:
    """Its lease runs out, another takes over with all clients, and it hears nothing meant for the other."""
    location = redis.location.replace(options={"lease": "200ms"})
    stale, client, peer = pair(location)
    client.send(SERVER, b"for the old one")
    until(lambda: redis.say("EXISTS", "remit:lease") == 0)
    fresh = transport.bind(location)
    arrive(client, Up)
    works(fresh, client, arrive(fresh, Up)[0].peer)
    down, before = arrive(stale, Down)
    assert down.peer == peer
    assert before == [Frame(peer, b"for the old one")]
    with pytest.raises(LocationInUse, match="took"):
        arrive(stale, Up)
    assert stale.send(peer, b"") is Sent.GONE
    assert redis.say("CLIENT", "LIST").count(b" name=remit ") == 2
    stale.close(1)
    works(fresh, client, next(iter(fresh.peers)))
    fresh.close(1)
    client.close(1)


def test_a_lapsed_lease_is_taken_again_if_nobody_wanted_it(redis: Redis) -> None:
    """A server that was late and alone goes on as if nothing had been."""
    server, client, peer = pair(redis.location.replace(options={"lease": "200ms"}))
    until(lambda: redis.say("EXISTS", "remit:lease") == 0)
    works(server, client, peer)
    assert redis.say("EXISTS", "remit:lease") == 1
    server.close(1)
    assert redis.say("EXISTS", "remit:lease") == 0
    client.close(1)
