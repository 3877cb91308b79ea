"""Traffic over Redis: garbage, subscribers that do not read, and windows that keep both sides safe."""

from __future__ import annotations

import os
import signal

from redis_ends import DEADLINE, arrive, pair, take, transport, works
from redis_server import Redis

from remit.transport import SERVER, Down, Frame, Sent, Up


def test_garbage_is_dropped_and_counted(redis: Redis) -> None:
    """Anybody may publish: nothing but frames of known peers comes through."""
    server, client, peer = pair(redis.location)
    hub = redis.say("GET", "remit:lease").decode()
    inbox = redis.say("PUBSUB", "CHANNELS", "*:inbox:*")[0].decode()
    garbage = ["", "F", "J", "J" + "z" * 16, "F" + "0" * 16 + "hello", "J" + peer.decode(), "hello world, how are you?"]
    for text in garbage:
        redis.say("PUBLISH", hub, text)
    for text in ("", "+", "hello", "+" + "x" * 40, "-remit:0:hub:nobody"):
        redis.say("PUBLISH", "remit:0:news", text)
    works(server, client, peer)
    assert server.dropped == len(garbage)
    assert client.dropped == 4
    assert inbox.endswith(peer.decode())
    server.close(1)
    client.close(1)


def test_a_slow_subscriber_is_dropped_by_redis_with_a_notice(redis: Redis) -> None:
    """More than the window under way: Redis ends the connection; what came is a prefix, then comes Down."""
    server, client, peer = pair(redis.location)
    block, accepted = bytes(512 * 1024), 0
    while client.receive() is None:
        sent = client.send(SERVER, b"%06d" % accepted + block)
        accepted += sent is Sent.ACCEPTED
        if sent is Sent.FULL:
            client.wait(1.0)
        assert accepted < 1000, "redis keeps all of it"
    down, before = arrive(server, Down, client)
    assert down.peer == peer
    numbers = [int(frame.data[:6]) for frame in before]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) < accepted
    arrive(client, Up, server)
    works(server, client, arrive(server, Up)[0].peer)
    server.close(1)
    client.close(1)


def test_the_window_is_far_below_what_redis_keeps() -> None:
    """Many clients that fill their windows at once are no slow subscriber yet."""
    assert transport.capabilities.window is not None
    assert transport.capabilities.window * 16 <= 4 * 1024 * 1024


def test_a_stopped_redis_fills_the_link_and_blocks_nothing(redis: Redis) -> None:
    """Unanswered bytes are bounded; all of them arrive once Redis goes on."""
    server, client, peer = pair(redis.location)
    os.kill(redis.pid, signal.SIGSTOP)
    accepted, frame = 0, bytes(64 * 1024)
    while client.send(SERVER, frame) is Sent.ACCEPTED:
        accepted += 1
        assert accepted * len(frame) <= 2 * 1024 * 1024
    assert accepted > 0
    os.kill(redis.pid, signal.SIGCONT)
    client.wait(DEADLINE)
    take(client, b"last")
    for _ in range(accepted):
        assert arrive(server, Frame)[0] == Frame(peer, frame)
    assert arrive(server, Frame)[0] == Frame(peer, b"last")
    server.close(1)
    client.close(1)
