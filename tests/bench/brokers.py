"""Brokers: five workers behind one place, one client with many requests under way, against ZeroMQ's own proxy."""

from __future__ import annotations

import tempfile
import time
from functools import partial
from typing import Any

from bench.cases import Case, Processes, Table, location

TABLE = Table("a broker and five workers: requests answered, 1,000 under way")
WORKERS = 5
REQUESTS = 30_000
UNDER_WAY = 1000
PROXY = "zmq.proxy, the C loop, raw bytes"


def cases() -> list[Case]:
    """Return the rows."""
    return [
        Case(TABLE, PROXY, proxy),
        *(
            Case(TABLE, f"remit {scheme}", partial(ours, scheme), ((PROXY, 1.0),))
            for scheme in ("unix", "zmq+ipc", "zmq+tcp")
        ),
    ]


def run(broker: Any, worker: Any, client: Any, where: Any) -> float:
    """Start them all; return the client's rate."""
    with Processes() as processes:
        middle = processes.start(broker, where)
        address = processes.take(middle)
        workers = [processes.start(worker, address) for _ in range(WORKERS)]
        for each in workers:
            processes.take(each)
        rate = float(processes.take(processes.start(client, address)))
        for each in (*workers, middle):
            each.send("end")
    return rate


def ours(scheme: str) -> float:
    """Return the rate of our own broker."""
    with tempfile.TemporaryDirectory(prefix="remit-") as folder:
        return run(broke, work, ask, location(scheme, folder))


def broke(pipe: Any, where: str) -> None:
    """Process: a broker."""
    from remit import Broker

    with Broker(where) as broker:
        pipe.send(broker.location.url)
        while not pipe.poll():
            broker.run(0.2)


def work(pipe: Any, where: str) -> None:
    """Process: a worker that takes many short jobs at once."""
    import threading

    from remit import Worker

    with Worker(where, capacity=200) as worker:
        worker.add_handler("double", lambda number: 2 * number)
        threading.Thread(target=lambda: (pipe.recv(), worker.stop()), daemon=True).start()
        pipe.send("ready")
        worker.run()


def ask(pipe: Any, where: str) -> None:
    """Process: a client that keeps many requests under way."""
    from remit import Client

    with Client(where) as client:
        client.request("double", 1)
        start = time.monotonic()
        futures = [client.submit("double", number) for number in range(UNDER_WAY)]
        for number in range(REQUESTS):
            assert futures[number].result(60) == 2 * number
            futures[number] = None
            if number + UNDER_WAY < REQUESTS:
                futures.append(client.submit("double", number + UNDER_WAY))
        pipe.send(REQUESTS / (time.monotonic() - start))


def proxy() -> float:
    """Return the rate of ROUTER, DEALER and five REP."""
    with tempfile.TemporaryDirectory(prefix="remit-") as folder:
        return run(route, reply, deal, folder)


def route(pipe: Any, folder: str) -> None:
    """Process: the proxy."""
    import threading

    import zmq

    context = zmq.Context()
    front, back = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    for socket in (front, back):  # A ROUTER drops what is over its high-water mark.
        socket.set_hwm(0)
    front.bind(f"ipc://{folder}/f")
    back.bind(f"ipc://{folder}/b")
    threading.Thread(target=zmq.proxy, args=(front, back), daemon=True).start()
    pipe.send(folder)
    pipe.recv()


def reply(pipe: Any, folder: str) -> None:
    """Process: REP."""
    import threading

    import zmq

    socket = zmq.Context().socket(zmq.REP)
    socket.connect(f"ipc://{folder}/b")
    pipe.send("ready")

    def serve() -> None:
        while True:
            socket.send((2 * int.from_bytes(socket.recv(), "big")).to_bytes(8, "big"))

    threading.Thread(target=serve, daemon=True).start()
    pipe.recv()


def deal(pipe: Any, folder: str) -> None:
    """Process: DEALER; answers of several workers come in any order."""
    import zmq

    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.set_hwm(0)
        socket.connect(f"ipc://{folder}/f")
        start = time.monotonic()
        for number in range(UNDER_WAY):
            socket.send_multipart([b"", number.to_bytes(8, "big")])
        total = 0
        for number in range(REQUESTS):
            total += int.from_bytes(socket.recv_multipart()[1], "big")
            if number + UNDER_WAY < REQUESTS:
                socket.send_multipart([b"", (number + UNDER_WAY).to_bytes(8, "big")])
        assert total == REQUESTS * (REQUESTS - 1)
        pipe.send(REQUESTS / (time.monotonic() - start))
