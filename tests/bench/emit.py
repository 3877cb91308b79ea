"""Emit: Remit's acknowledged events against the raw library's own loop, over each transport."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from bench import raw
from bench.cases import Case, redis_url, two_processes

EVENTS = 200_000
TABLE = "small events, two arguments, from one process to another"


def cases() -> list[Case]:
    """Return the rows: for each transport the raw loop, then ours."""
    return [
        Case(TABLE, "multiprocessing.Queue", partial(raw.queue_case, 100_000)),
        remit("unix", "multiprocessing.Queue"),
        Case(TABLE, "pyzmq PUSH/PULL tcp, 64 raw bytes", partial(two_processes, raw.receive_zmq, raw.send_zmq, EVENTS)),
        remit("zmq+tcp", "pyzmq PUSH/PULL tcp, 64 raw bytes"),
        remit("zmq+ipc", "pyzmq PUSH/PULL tcp, 64 raw bytes"),
        Case(TABLE, "pynng Push/Pull tcp", partial(two_processes, raw.receive_nng, raw.send_nng, 40_000)),
        remit("nng+tcp", "pynng Push/Pull tcp"),
        remit("nng+ipc", "pynng Push/Pull tcp"),
        Case(TABLE, "redis-py PUBLISH", partial(redis_case, raw.receive_redis, raw.send_redis, 10_000, 1)),
        Case(
            TABLE,
            "redis-py PUBLISH, pipelined by 100",
            partial(redis_case, raw.receive_redis, raw.send_redis, 60_000, 100),
        ),
        remit("redis", "redis-py PUBLISH, pipelined by 100", "redis-py PUBLISH"),
        Case(TABLE, "queue.SimpleQueue, two threads", partial(raw.simple_queue, EVENTS)),
        Case(TABLE, "remit memory, two threads", partial(memory, EVENTS), ("queue.SimpleQueue, two threads",)),
    ]


def remit(scheme: str, *against: str) -> Case:
    """Return a row of ours."""
    return Case(TABLE, f"remit {scheme}", partial(over, scheme), against)


def over(scheme: str) -> float:
    """Return the rate of acknowledged emits over a transport."""
    with tempfile.TemporaryDirectory(prefix="remit-") as folder:
        if scheme == "redis":
            return two_processes(receive, send, f"{redis_url()}?prefix=bench{os.getpid()}-{time.time_ns()}", EVENTS)
        address = f"{scheme}://127.0.0.1:0" if scheme.endswith("+tcp") else f"{scheme}://{Path(folder) / 's'}"
        return two_processes(receive, send, address, EVENTS)


def redis_case(receiver: Any, sender: Any, events: int, batch: int) -> float:
    """Run a raw redis loop."""
    return two_processes(receiver, sender, redis_url(), events, batch)


def receive(pipe: Any, address: str, events: int) -> None:
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


def send(pipe: Any, address: str, _: str, events: int) -> None:
    """Process: a client, default options."""
    from remit import Client

    with Client(address) as client:
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
