"""Raw: the loops that a user would write with each library alone."""

from __future__ import annotations

import multiprocessing
import queue
import threading
import time
from typing import Any

BODY = b"x" * 56


def queue_case(events: int) -> float:
    """Return the rate of a multiprocessing.Queue; it travels by inheritance alone, so this process receives."""
    context = multiprocessing.get_context("spawn")
    channel = context.Queue()
    ours, theirs = context.Pipe()
    heard = 0

    def price(pair: str, number: int) -> None:
        nonlocal heard
        assert number == heard
        heard += 1

    sender = context.Process(target=fill_queue, args=(channel, theirs, events), daemon=True)
    sender.start()
    for _ in range(events):
        _, args = channel.get(timeout=60)
        price(*args)
    rate = heard / (time.monotonic() - ours.recv())
    sender.join(10)
    channel.close()
    return rate


def fill_queue(channel: Any, pipe: Any, events: int) -> None:
    """Process: fill the queue."""
    pipe.send(time.monotonic())
    for number in range(events):
        channel.put(("price.tick", ("EURUSD", number)))


def receive_zmq(pipe: Any, events: int) -> None:
    """Process: PULL, one message at a time."""
    import zmq

    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        pipe.send(port)
        for number in range(events):
            message = socket.recv()
            assert int.from_bytes(message[:8], "big") == number
        pipe.send((time.monotonic(), events))


def send_zmq(pipe: Any, port: int, events: int) -> None:
    """Process: PUSH, one message at a time."""
    import zmq

    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.connect(f"tcp://127.0.0.1:{port}")
        start = time.monotonic()
        for number in range(events):
            socket.send(number.to_bytes(8, "big") + BODY)
        pipe.send(start)
        pipe.send(time.monotonic())


def receive_nng(pipe: Any, events: int) -> None:
    """Process: Pull0, one message at a time."""
    import pynng

    with pynng.Pull0(recv_timeout=60_000) as socket:
        listener = socket.listen("tcp://127.0.0.1:0")
        pipe.send(listener.url)
        for number in range(events):
            message = socket.recv()
            assert int.from_bytes(message[:8], "big") == number
        pipe.send((time.monotonic(), events))


def send_nng(pipe: Any, address: str, events: int) -> None:
    """Process: Push0, one message at a time; it waits at the end, since closing would drop what is buffered."""
    import pynng

    with pynng.Push0(send_timeout=60_000) as socket:
        socket.dial(address, block=True)
        start = time.monotonic()
        for number in range(events):
            socket.send(number.to_bytes(8, "big") + BODY)
        pipe.send(start)
        pipe.send(time.monotonic())
        time.sleep(0.5)


def receive_redis(pipe: Any, url: str, events: int, batch: int) -> None:
    """Process: SUBSCRIBE."""
    import redis

    with redis.Redis.from_url(url) as client, client.pubsub(ignore_subscribe_messages=False) as pubsub:
        channel = f"raw{time.time_ns()}"
        pubsub.subscribe(channel)
        while pubsub.get_message(timeout=1)["type"] != "subscribe":
            pass
        pipe.send(channel)
        number = 0
        while number < events:
            message = pubsub.get_message(timeout=60)
            if message is not None:
                assert int.from_bytes(message["data"][:8], "big") == number
                number += 1
        pipe.send((time.monotonic(), events))


def send_redis(pipe: Any, channel: str, url: str, events: int, batch: int) -> None:
    """Process: PUBLISH one by one, or pipelined."""
    import redis

    with redis.Redis.from_url(url) as client:
        start = time.monotonic()
        for first in range(0, events, batch):
            if batch == 1:
                client.publish(channel, first.to_bytes(8, "big") + BODY)
                continue
            with client.pipeline(transaction=False) as pipeline:
                for number in range(first, first + batch):
                    pipeline.publish(channel, number.to_bytes(8, "big") + BODY)
                pipeline.execute()
        pipe.send(start)
        pipe.send(time.monotonic())


def simple_queue(events: int) -> float:
    """Return the rate of a SimpleQueue between two threads."""
    channel: queue.SimpleQueue[Any] = queue.SimpleQueue()
    heard = 0

    def price(pair: str, number: int) -> None:
        nonlocal heard
        assert number == heard
        heard += 1

    def run() -> None:
        for number in range(events):
            channel.put(("price.tick", ("EURUSD", number)))

    thread = threading.Thread(target=run)
    start = time.monotonic()
    thread.start()
    while heard < events:
        _, args = channel.get()
        price(*args)
    rate = heard / (time.monotonic() - start)
    thread.join()
    return rate
