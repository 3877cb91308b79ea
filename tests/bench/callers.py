"""Callers: what else a Python program would ask with, each in its own recommended way."""

from __future__ import annotations

import asyncio
import socket
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from bench.cases import Case, Processes, Table
from bench.peers import nats_server, row

ROUND_TRIPS = 1000


def asking(table: Table) -> list[Case]:
    """Return the rows of peers that ask."""
    return [
        *row(table, "rpyc", "rpyc tcp", partial(asked, answer_rpyc, ask_rpyc)),
        *row(table, "zerorpc", "zerorpc tcp", partial(asked, answer_zerorpc, ask_zerorpc)),
        *row(table, "nats", "nats-py request", asked_nats),
    ]


def asked(answer: Any, ask: Any, *args: Any) -> float:
    """Return the median round trip that the asking process measured."""
    with Processes() as processes:
        answering = processes.start(answer, *args)
        address = processes.take(answering)
        figure = float(processes.take(processes.start(ask, address)))
        answering.send("end")
        return figure


def timed(ask: Callable[[int], None]) -> float:
    """Return the median of a round trip in microseconds, the first tenth left out."""
    spent = []
    for number in range(ROUND_TRIPS):
        start = time.perf_counter()
        ask(number)
        spent.append(time.perf_counter() - start)
    return statistics.median(spent[ROUND_TRIPS // 10 :]) * 1e6


# -- nats-py ---------------------------------------------------------------------------------------------------


def asked_nats() -> float:
    """Return the median round trip of a request through a nats-server."""
    with nats_server() as url:
        return asked(answer_nats, ask_nats, url)


def answer_nats(pipe: Any, url: str) -> None:
    """Process: answers requests."""
    import nats

    async def main() -> None:
        client = await nats.connect(url)

        async def answer(message: Any) -> None:
            await message.respond(str(2 * int(message.data)).encode())

        await client.subscribe("double", cb=answer)
        await client.flush()
        pipe.send(url)
        await asyncio.to_thread(pipe.recv)
        await client.close()

    asyncio.run(main())


def ask_nats(pipe: Any, url: str) -> None:
    """Process: asks, one request at a time."""
    import nats

    async def main() -> None:
        client = await nats.connect(url)
        spent = []
        for number in range(ROUND_TRIPS):
            start = time.perf_counter()
            answer = await client.request("double", str(number).encode(), timeout=10)
            spent.append(time.perf_counter() - start)
            assert int(answer.data) == 2 * number
        pipe.send(statistics.median(spent[ROUND_TRIPS // 10 :]) * 1e6)
        await client.close()

    asyncio.run(main())


# -- rpyc, zerorpc ---------------------------------------------------------------------------------------------


def answer_rpyc(pipe: Any) -> None:
    """Process: a threaded server, in a process that ends with its asker."""
    import threading

    import rpyc
    from rpyc.utils.server import ThreadedServer

    class Service(rpyc.Service):
        def exposed_double(self, number: int) -> int:
            return 2 * number

    server = ThreadedServer(Service, hostname="127.0.0.1", port=0)
    threading.Thread(target=server.start, daemon=True).start()
    pipe.send(server.port)
    pipe.recv()
    server.close()


def ask_rpyc(pipe: Any, port: int) -> None:
    """Process: asks."""
    import rpyc

    connection = rpyc.connect("127.0.0.1", port)

    def ask(number: int) -> None:
        assert connection.root.double(number) == 2 * number

    pipe.send(timed(ask))
    connection.close()


def answer_zerorpc(pipe: Any) -> None:
    """Process: a server on gevent."""
    import gevent
    import zerorpc

    class Service:
        def double(self, number: int) -> int:
            return 2 * number

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = zerorpc.Server(Service())
    server.bind(f"tcp://127.0.0.1:{port}")
    serving = gevent.spawn(server.run)
    pipe.send(port)
    while not pipe.poll():
        gevent.sleep(0.05)
    serving.kill()


def ask_zerorpc(pipe: Any, port: int) -> None:
    """Process: asks."""
    import zerorpc

    client = zerorpc.Client()
    client.connect(f"tcp://127.0.0.1:{port}")

    def ask(number: int) -> None:
        assert client.double(number) == 2 * number

    pipe.send(timed(ask))
    client.close()
