"""Emit: Remit's acknowledged events against the raw library's own loop, over each transport."""

from __future__ import annotations

import tempfile
import threading
import time
from functools import partial
from typing import Any

from bench import raw
from bench.cases import Case, Table, location, redis_url, two_processes

EVENTS = 200_000
TABLE = Table("small events, two arguments, from one process to another")
ONCE = Table("the same, delivered at most once")
QUEUE = "multiprocessing.Queue"
ZMQ = "pyzmq PUSH/PULL tcp, 64 raw bytes"
NNG = "pynng Push/Pull tcp"
PIPELINED = "redis-py PUBLISH, pipelined by 100"
THREADS = "queue.SimpleQueue, two threads"


def cases() -> list[Case]:
    """Return the rows: for each transport the raw loop, then ours."""
    return [
        Case(TABLE, QUEUE, partial(raw.queue_case, 100_000)),
        Case(TABLE, ZMQ, partial(two_processes, raw.receive_zmq, raw.send_zmq, EVENTS)),
        Case(TABLE, NNG, partial(two_processes, raw.receive_nng, raw.send_nng, 40_000)),
        Case(TABLE, "redis-py PUBLISH", partial(redis_case, raw.receive_redis, raw.send_redis, 10_000, 1)),
        Case(TABLE, PIPELINED, partial(redis_case, raw.receive_redis, raw.send_redis, 60_000, 100)),
        Case(TABLE, THREADS, partial(raw.simple_queue, EVENTS)),
        Case(TABLE, "remit unix", partial(over, "unix"), ((QUEUE, 4.0),)),
        Case(TABLE, "remit zmq+tcp", partial(over, "zmq+tcp"), ((ZMQ, 1.5),)),
        Case(TABLE, "remit zmq+ipc", partial(over, "zmq+ipc"), ((ZMQ, None),)),
        Case(TABLE, "remit nng+tcp", partial(over, "nng+tcp"), ((NNG, 30.0),)),
        Case(TABLE, "remit nng+ipc", partial(over, "nng+ipc"), ((NNG, None),)),
        Case(TABLE, "remit redis", partial(over, "redis"), ((PIPELINED, 3.0), ("redis-py PUBLISH", 40.0))),
        Case(TABLE, "remit memory, two threads", partial(memory, EVENTS), ((THREADS, None),)),
        Case(ONCE, "remit zmq+tcp, at most once", partial(over, "zmq+tcp", "at_most_once"), ((ZMQ, 2.0),)),
    ]


def over(scheme: str, delivery: str = "acknowledged") -> float:
    """Return the rate of emits over a transport."""
    with tempfile.TemporaryDirectory(prefix="remit-") as folder:
        return two_processes(receive, send, location(scheme, folder), EVENTS, delivery)


def redis_case(receiver: Any, sender: Any, events: int, batch: int) -> float:
    """Run a raw redis loop."""
    return two_processes(receiver, sender, redis_url(), events, batch)


def receive(pipe: Any, address: str, events: int, _: str) -> None:
    """Process: a server that checks every event."""
    from remit import Server

    heard = 0

    def price(pair: str, number: int) -> None:
        nonlocal heard
        assert number == heard
        heard += 1

    with Server(address) as server:
        server.add_listener("price.tick", price)
        pipe.send(server.location.url)
        while heard < events:
            if not server.tick():
                server.wait(1.0)
        end = time.monotonic()
        while server.stats()["sessions"]:
            server.wait(0.1)
            server.tick()
    pipe.send((end, heard))


def send(pipe: Any, address: str, _: str, events: int, delivery: str) -> None:
    """Process: a client, default options."""
    from remit import Client

    with Client(address, delivery=delivery) as client:
        client.emit("warm")
        client.flush(10)
        start = time.monotonic()
        emit = client.emit
        for number in range(events):
            emit("price.tick", "EURUSD", number)
        client.flush(60)
        pipe.send(start)
        pipe.send(time.monotonic())


def memory(events: int) -> float:
    """Return the rate between two threads of one process."""
    from remit import Client, Server

    heard = 0

    def price(pair: str, number: int) -> None:
        nonlocal heard
        assert number == heard
        heard += 1

    with Server("memory://bench") as server:
        server.add_listener("price.tick", price)
        client = Client("memory://bench")

        def run() -> None:
            for number in range(events):
                client.emit("price.tick", "EURUSD", number)
            client.close(60)

        thread = threading.Thread(target=run)
        start = time.monotonic()
        thread.start()
        while heard < events or thread.is_alive():
            if not server.tick():
                server.wait(0.1)
        return heard / (time.monotonic() - start)
