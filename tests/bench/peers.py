"""Peers: what else a Python program would emit with, each in its own recommended way."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from bench.cases import Case, Table, redis_url, two_processes

CONFIRMED = 5_000
"""Events for those that confirm each one."""
STREAMED = 50_000


def emitting(table: Table) -> list[Case]:
    """Return the rows of peers that emit."""
    return [
        *row(table, "kombu", "kombu, redis", partial(over_redis, hear_kombu, emit_kombu, CONFIRMED)),
        *row(
            table, "faststream", "faststream, redis channel", partial(over_redis, hear_stream, emit_stream, CONFIRMED)
        ),
        *row(table, "nats", "nats-py, unconfirmed", partial(over_nats, hear_nats, emit_nats, STREAMED)),
    ]


def row(table: Table, module: str, name: str, run: Callable[[], float]) -> list[Case]:
    """Return the row, if the library is there: `make bench` installs them all."""
    return [Case(table, name, run)] if importlib.util.find_spec(module) else []


def over_redis(hear: Any, emit: Any, events: int) -> float:
    """Run one that goes through redis."""
    return two_processes(hear, emit, redis_url(), events)


# -- kombu -----------------------------------------------------------------------------------------------------


def hear_kombu(pipe: Any, url: str, events: int) -> None:
    """Process: a consumer that acknowledges each message."""
    import kombu

    heard = 0
    name = f"bench{time.time_ns()}"

    def hear(body: Any, message: Any) -> None:
        nonlocal heard
        pair, number = body
        assert (pair, number) == ("EURUSD", heard)
        heard += 1
        message.ack()

    with kombu.Connection(url) as connection:
        queue = kombu.Queue(name, kombu.Exchange(name, type="direct"), routing_key=name)
        with connection.Consumer([queue], callbacks=[hear]):
            pipe.send(name)
            while heard < events:
                connection.drain_events(timeout=60)
        pipe.send((time.monotonic(), heard))


def emit_kombu(pipe: Any, name: str, url: str, events: int) -> None:
    """Process: a producer."""
    import kombu

    with kombu.Connection(url) as connection:
        producer = connection.Producer(serializer="json")
        exchange = kombu.Exchange(name, type="direct")
        pipe.send(time.monotonic())
        for number in range(events):
            producer.publish(("EURUSD", number), exchange=exchange, routing_key=name)
        pipe.send(time.monotonic())


# -- faststream ------------------------------------------------------------------------------------------------


def hear_stream(pipe: Any, url: str, events: int) -> None:
    """Process: a subscriber on an event loop."""
    from faststream.redis import RedisBroker

    async def main() -> None:
        heard, done = 0, asyncio.Event()
        name = f"bench{time.time_ns()}"
        async with RedisBroker(url, logger=None) as broker:

            @broker.subscriber(name)
            async def hear(body: list[Any]) -> None:
                nonlocal heard
                assert body == ["EURUSD", heard]
                heard += 1
                if heard == events:
                    done.set()

            await broker.start()
            pipe.send(name)
            await done.wait()
        pipe.send((time.monotonic(), heard))

    asyncio.run(main())


def emit_stream(pipe: Any, name: str, url: str, events: int) -> None:
    """Process: a publisher on an event loop."""
    from faststream.redis import RedisBroker

    async def main() -> None:
        async with RedisBroker(url, logger=None) as broker:
            pipe.send(time.monotonic())
            for number in range(events):
                await broker.publish(["EURUSD", number], channel=name)
            pipe.send(time.monotonic())

    asyncio.run(main())


# -- nats-py ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def nats_server() -> Iterator[str]:
    """Run a nats-server of our own on a free port."""
    program = shutil.which("nats-server")
    if program is None:
        raise LookupError("nats-py is here, but no nats-server on PATH")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen([program, "-a", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, "nats-server did not come up"
                time.sleep(0.01)
        yield f"nats://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def over_nats(hear: Any, emit: Any, events: int) -> float:
    """Run one that goes through a nats-server."""
    with nats_server() as url:
        return two_processes(hear, emit, url, events)


def hear_nats(pipe: Any, url: str, events: int) -> None:
    """Process: a subscriber."""
    import json

    import nats

    async def main() -> None:
        heard, done = 0, asyncio.Event()
        client = await nats.connect(url)

        async def hear(message: Any) -> None:
            nonlocal heard
            assert json.loads(message.data) == ["EURUSD", heard]
            heard += 1
            if heard == events:
                done.set()

        await client.subscribe("price", cb=hear, pending_msgs_limit=-1, pending_bytes_limit=-1)
        await client.flush()
        pipe.send("price")
        await done.wait()
        pipe.send((time.monotonic(), heard))
        await client.close()

    asyncio.run(main())


def emit_nats(pipe: Any, subject: str, url: str, events: int) -> None:
    """Process: a publisher."""
    import json

    import nats

    async def main() -> None:
        client = await nats.connect(url)
        pipe.send(time.monotonic())
        for number in range(events):
            await client.publish(subject, json.dumps(["EURUSD", number]).encode())
        await client.flush()
        pipe.send(time.monotonic())
        await client.close()

    asyncio.run(main())
