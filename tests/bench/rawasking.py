"""Raw asking: what the libraries themselves do, one question at a time, or one event at a time."""

from __future__ import annotations

import time
from typing import Any

from bench.cases import redis_url
from bench.timing import EVENTS, REQUESTS, median, pace, timed


def answer_zmq(pipe: Any, where: str) -> None:
    """Process: REP."""
    import zmq

    with zmq.Context() as context, context.socket(zmq.REP) as socket:
        socket.bind(where)
        pipe.send(socket.getsockopt_string(zmq.LAST_ENDPOINT))
        for _ in range(REQUESTS):
            socket.send((2 * int.from_bytes(socket.recv(), "big")).to_bytes(8, "big"))


def ask_zmq(pipe: Any, where: str) -> None:
    """Process: REQ."""
    import zmq

    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.connect(where)

        def ask(number: int) -> None:
            socket.send(number.to_bytes(8, "big"))
            assert int.from_bytes(socket.recv(), "big") == 2 * number

        pipe.send(timed(ask))


def hear_zmq(pipe: Any, where: str) -> None:
    """Process: PULL."""
    import struct

    import zmq

    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.bind(where)
        pipe.send(socket.getsockopt_string(zmq.LAST_ENDPOINT))

        def age() -> float:
            (sent,) = struct.unpack("d", socket.recv())
            return time.monotonic() - float(sent)

        pipe.send(median([age() for _ in range(EVENTS)]))


def pace_zmq(pipe: Any, where: str) -> None:
    """Process: PUSH."""
    import struct

    import zmq

    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.connect(where)
        pace(lambda: socket.send(struct.pack("d", time.monotonic())))
        pipe.send(None)


def answer_nng(pipe: Any, where: str) -> None:
    """Process: Rep0."""
    import pynng

    with pynng.Rep0(recv_timeout=60_000) as socket:
        pipe.send(socket.listen(where).url)
        for _ in range(REQUESTS):
            socket.send((2 * int.from_bytes(socket.recv(), "big")).to_bytes(8, "big"))
        pipe.poll(60)


def ask_nng(pipe: Any, where: str) -> None:
    """Process: Req0."""
    import pynng

    with pynng.Req0(recv_timeout=60_000) as socket:
        socket.dial(where, block=True)

        def ask(number: int) -> None:
            socket.send(number.to_bytes(8, "big"))
            assert int.from_bytes(socket.recv(), "big") == 2 * number

        pipe.send(timed(ask))


def answer_redis(pipe: Any, _: str) -> None:
    """Process: hears one channel, answers on another."""
    import redis

    channel = f"raw{time.time_ns()}"
    with redis.Redis.from_url(redis_url()) as client, client.pubsub() as pubsub:
        pubsub.subscribe(channel)
        while pubsub.get_message(timeout=1)["type"] != "subscribe":
            pass
        pipe.send(channel)
        for _ in range(REQUESTS):
            message = None
            while message is None:
                message = pubsub.get_message(timeout=60)
            client.publish(f"{channel}-back", 2 * int(message["data"]))


def ask_redis(pipe: Any, channel: str) -> None:
    """Process: asks on one channel, hears the answer on another."""
    import redis

    with redis.Redis.from_url(redis_url()) as client, client.pubsub() as pubsub:
        pubsub.subscribe(f"{channel}-back")
        while pubsub.get_message(timeout=1)["type"] != "subscribe":
            pass

        def ask(number: int) -> None:
            client.publish(channel, number)
            message = None
            while message is None:
                message = pubsub.get_message(timeout=60)
            assert int(message["data"]) == 2 * number

        pipe.send(timed(ask))


def answer_pipe(pipe: Any, _: str) -> None:
    """Process: answers on a listener of multiprocessing's, which pickles as a user would."""
    from multiprocessing.connection import Listener

    with Listener(family="AF_UNIX") as listener:
        pipe.send(listener.address)
        with listener.accept() as connection:
            for _ in range(REQUESTS):
                connection.send(2 * connection.recv())


def ask_pipe(pipe: Any, address: str) -> None:
    """Process: asks there."""
    from multiprocessing.connection import Client

    with Client(address, family="AF_UNIX") as connection:

        def ask(number: int) -> None:
            connection.send(number)
            assert connection.recv() == 2 * number

        pipe.send(timed(ask))
