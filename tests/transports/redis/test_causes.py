"""What keeps Redis away is reported at both ends, and so is its return."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from redis_server import Redis
from ticking import ticked
from waiting import wait_until

from remit import Client, Server
from remit.errors import RequestTimeout, TransportError, Undelivered


def require_a_password(redis: Redis) -> None:
    redis.say("CONFIG", "SET", "requirepass", "new")
    for kind in ("normal", "pubsub"):
        with_password(redis, "CLIENT", "KILL", "TYPE", kind)


def with_password(redis: Redis, *words: str) -> None:
    """Run a command as the user with the new password."""
    redis.say_all(("AUTH", "new"), words)


def allow_all(redis: Redis) -> None:
    redis.say_all(("AUTH", "new"), ("CONFIG", "SET", "requirepass", ""))


def demote(redis: Redis) -> None:
    redis.say("REPLICAOF", "127.0.0.1", "1")


def promote(redis: Redis) -> None:
    redis.say("REPLICAOF", "NO", "ONE")


@pytest.mark.parametrize(
    ("hurt", "heal", "reason"),
    [
        (require_a_password, allow_all, "NOAUTH"),
        (demote, promote, "READONLY"),
        (Redis.kill, Redis.start, "cannot reach redis"),
    ],
)
def test_a_redis_that_fails_is_the_cause_at_both_ends(
    redis: Redis,
    hurt: Callable[[Redis], None],
    heal: Callable[[Redis], None],
    reason: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("remit._io.connection_log.GRACE_S", 0.05)
    caplog.set_level(logging.INFO, "remit")
    with Server(redis.location) as server, ticked(server), Client(redis.location) as client:
        server.add_listener("ping", lambda: "pong")
        client.request("ping")
        hurt(redis)
        wait_until(lambda: reason in server.stats()["why"])
        assert reason in repr(server)
        if reason != "READONLY":  # A replica answers the client, which only reads the lease there.
            wait_until(lambda: reason in client.stats()["why"])
            with pytest.raises(RequestTimeout, match=reason):
                client.request("ping", timeout=0.2)
            other = Client(redis.location) if reason.startswith("cannot") else None
            if other is not None:
                other.emit("e")
                with pytest.raises(Undelivered, match=reason):
                    other.close(0.3)
        wait_until(lambda: "cannot be reached" in caplog.text)
        heal(redis)
        wait_until(lambda: not server.stats()["why"])
        wait_until(lambda: not client.stats()["why"])
        assert client.request("ping", idempotent=True) == "pong"
        wait_until(lambda: "can be reached again" in caplog.text)
    assert caplog.text.count("cannot be reached") == caplog.text.count("can be reached again") == 1


def test_tls_to_a_port_without_tls_is_named(redis: Redis) -> None:
    location = redis.location.replace(scheme="rediss")
    with pytest.raises(TransportError, match="speaks no TLS"):
        Server(location)
    with pytest.raises(TransportError, match="speaks no TLS"):
        Client(location).emit("e")
