"""Scaling: what an idle tick costs, and what an event costs, with one client and with a thousand."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from functools import partial

from bench.cases import Case, Table

IDLE = Table("an idle tick", "us", less_is_better=True)
EVENT = Table("an event, from a client to its listener's return", "us", less_is_better=True)
MANY = 1000
TICKS = 5000
EVENTS = 20_000
BURST = 20
"""Events of one client at a time, however many clients there are: bursts share frames, and so the cost of these."""
_numbers = itertools.count()


def cases() -> list[Case]:
    """Return the rows."""
    one, many = "1 client", f"{MANY} clients"
    return [
        *(
            row
            for scheme in ("memory", "unix")
            for row in (
                Case(IDLE, f"{scheme}, {one}", partial(idle, scheme, 1), bound=5.0),
                Case(IDLE, f"{scheme}, {many}", partial(idle, scheme, MANY), ((f"{scheme}, {one}", None),), bound=5.0),
            )
        ),
        Case(EVENT, f"memory, {one} ", partial(event, 1)),
        Case(EVENT, f"memory, {many} ", partial(event, MANY), ((f"memory, {one} ", 1.5),)),
    ]


def idle(scheme: str, count: int) -> float:
    """Return the median of a tick with nothing to do."""
    from remit import Client, Server

    with tempfile.TemporaryDirectory(prefix="remit-") as folder:
        where = f"memory://idle{next(_numbers)}" if scheme == "memory" else f"unix://{folder}/s"
        with Server(where, threaded=False) as server:
            clients = [Client(where, threaded=False) for _ in range(count)]
            for client in clients:
                client.emit("hello")
            while server.stats()["dispatched"] < count:
                server.tick()
                server.wait(0.01)
            for client in clients:
                client.tick()
            server.tick()
            spent = []
            for _ in range(TICKS):
                start = time.perf_counter()
                server.tick()
                spent.append(time.perf_counter() - start)
            for client in clients:
                client.close(0.0)
        return statistics.median(spent) * 1e6


def event(count: int) -> float:
    """Return the time of one event, of many clients in turn, in one thread."""
    from remit import Client, Server

    where = f"memory://event{next(_numbers)}"
    heard = 0

    def hear(number: int) -> None:
        nonlocal heard
        heard += 1

    with Server(where, threaded=False) as server:
        server.add_listener("n", hear)
        clients = [Client(where, threaded=False) for _ in range(count)]
        for client in clients:
            client.emit("n", 0)
        while heard < count:
            server.tick()
        start = time.perf_counter()
        for client in itertools.islice(itertools.cycle(clients), EVENTS // BURST):
            for number in range(BURST):
                client.emit("n", number)
            client.tick()
            server.tick()
        while heard < count + EVENTS:
            for client in clients:
                client.tick()
            server.tick()
        spent = time.perf_counter() - start
        for client in clients:
            client.tick()  # The last acknowledgements.
            client.close(0.0)
    return spent / EVENTS * 1e6
