"""What a stranger says in the protocol's own words: whatever it is, the server goes on for all others."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from waiting import DEADLINE, wait_until

from remit import Broker, Client, Location, Server
from remit._protocol import frames
from remit._protocol.frames import Hello
from remit.codec import MessagePack
from remit.plugins import find_transport
from remit.transport import SERVER, Link, Up

CODEC = MessagePack()
PLACE = Location("memory://strangers")


def arrive(server: Server) -> Link:
    """Connect without a client."""
    link = find_transport("memory").connect(PLACE)
    wait_until(lambda: (server.tick(), isinstance(link.receive(), Up))[1])
    return link


def hello(**changes: Any) -> bytes:
    terms: dict[str, Any] = {"generation": 1, "oldest": 1, "latest": 0, "received": 0, "max_frame": 1 << 20}
    return frames.pack(Hello(session=b"s" * 16, instance=b"", codec=CODEC.name, **terms | changes))


def question(name: str, *args: Any, left: int | None = None) -> bytes:
    asked = CODEC.encode("remit.request", (1, left, True, CODEC.encode(name, args, {}, {})), {}, {})
    return CODEC.join(frames.head_with_lengths(1, 1, [asked]), [asked])


@pytest.mark.parametrize(
    "greeting",
    [
        {"oldest": 0},
        {"oldest": -5},
        {"oldest": 2**64 - 1},
        {"latest": -1},
        {"received": 2**64 - 1},
        {"generation": -1},
        {"generation": 2**32},
        {"max_frame": -1},
        {"welcomed_generation": -1},
    ],
)
def test_a_greeting_whose_numbers_fit_no_frame_is_counted_and_passed_over(greeting: dict[str, int]) -> None:
    with Server(PLACE) as server:
        link = arrive(server)
        first = greeting.get("oldest", 1) % 2**64
        for frame in (
            hello(**greeting),
            frames.pack_numbers(frames.FrameKind.PING, 1, 0),
            frames.head_with_lengths(1, first, [b"?", b""]) + b"?",
        ):
            link.send(SERVER, frame)
            server.tick()
        link.send(SERVER, hello())
        link.send(SERVER, question("remit.subscribe", 1, "x", 10, "drop_oldest", None, False))
        wait_until(lambda: server.tick() and server.stats()["subscriptions"] == 1)
        link.send(SERVER, hello(**greeting))
        server.publish("x")
        server.tick()
        assert server.stats()["rejected_malformed"] == 2
        link.close(0.0)


def test_who_takes_no_frames_to_speak_of_ends_no_broker() -> None:
    with Broker(PLACE) as broker:
        link = arrive(broker.server)
        link.send(SERVER, hello(max_frame=1))
        link.send(SERVER, question("nobody does this", left=1))
        wait_until(lambda: (broker.tick(), broker.stats()["late"] == 1)[1])
        thread = threading.Thread(target=broker.run)
        thread.start()
        with Client(PLACE) as client:
            client.emit("x")
            assert client.flush(DEADLINE)
        broker.stop()
        thread.join(DEADLINE)
        link.close(0.0)
