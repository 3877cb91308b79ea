"""Requests: round trips, one at a time, and one-way latency at a steady pace, against the raw libraries."""

from __future__ import annotations

import tempfile
import time
from functools import partial
from typing import Any

from bench.cases import Case, Processes, Table, location
from bench.rawasking import (
    answer_nng,
    answer_pipe,
    answer_redis,
    answer_zmq,
    ask_nng,
    ask_pipe,
    ask_redis,
    ask_zmq,
    hear_zmq,
    pace_zmq,
)
from bench.timing import EVENTS, median, pace, timed

ROUND_TRIP = Table("one request at a time: median of the round trip", "us", less_is_better=True)
LATENCY = Table("one-way latency at 1,000 events a second: median", "us", less_is_better=True)
RAW_ZMQ = "pyzmq REQ/REP"
RAW_NNG = "pynng Req/Rep"
RAW_REDIS = "redis-py, two channels"
RAW_LATENCY = "pyzmq PUSH/PULL"


def cases() -> list[Case]:
    """Return the rows."""
    rows = [
        Case(ROUND_TRIP, f"{RAW_ZMQ} tcp", partial(raw, answer_zmq, ask_zmq, "tcp://127.0.0.1:*")),
        Case(ROUND_TRIP, f"{RAW_ZMQ} ipc", partial(raw, answer_zmq, ask_zmq, "ipc")),
        Case(ROUND_TRIP, f"{RAW_NNG} tcp", partial(raw, answer_nng, ask_nng, "tcp://127.0.0.1:0")),
        Case(ROUND_TRIP, RAW_REDIS, partial(raw, answer_redis, ask_redis, "")),
        Case(ROUND_TRIP, "multiprocessing.Pipe", partial(raw, answer_pipe, ask_pipe, "")),
    ]
    against = {
        "unix": "multiprocessing.Pipe",
        "zmq+tcp": f"{RAW_ZMQ} tcp",
        "zmq+ipc": f"{RAW_ZMQ} ipc",
        "nng+tcp": f"{RAW_NNG} tcp",
        "redis": RAW_REDIS,
    }
    rows += [
        Case(ROUND_TRIP, f"remit {scheme}", partial(over, answer_remit, ask_remit, scheme), ((other, 1.4),))
        for scheme, other in against.items()
    ]
    rows.append(Case(LATENCY, f"{RAW_LATENCY} tcp", partial(raw, hear_zmq, pace_zmq, "tcp://127.0.0.1:*")))
    rows += [
        Case(LATENCY, f"remit {scheme}", partial(over, hear_remit, pace_remit, scheme), ((f"{RAW_LATENCY} tcp", 1.3),))
        for scheme in ("zmq+tcp", "zmq+ipc", "unix", "nng+tcp", "redis")
    ]
    return rows


def over(answer: Any, ask: Any, scheme: str) -> float:
    """Run one of ours."""
    with tempfile.TemporaryDirectory(prefix="remit-") as folder:
        return raw(answer, ask, location(scheme, folder))


def raw(answer: Any, ask: Any, where: str) -> float:
    """Run an answering and an asking process; return the median that one of them measured."""
    with tempfile.TemporaryDirectory(prefix="remit-") as folder, Processes() as processes:
        answering = processes.start(answer, f"ipc://{folder}/z" if where == "ipc" else where)
        address = processes.take(answering)
        asking = processes.start(ask, address)
        told = processes.take(asking)
        if told is None:
            told = processes.take(answering)
        answering.send("end")
        return float(told)


def answer_remit(pipe: Any, where: str) -> None:
    """Process: a server."""
    from remit import Server

    with Server(where) as server:
        server.add_listener("double", lambda number: 2 * number)
        pipe.send(server.location.url)
        while not pipe.poll():
            server.tick()
            server.wait(0.5)


def ask_remit(pipe: Any, where: str) -> None:
    """Process: a client, default options."""
    from remit import Client

    def ask(number: int) -> None:
        assert client.request("double", number) == 2 * number

    with Client(where) as client:
        pipe.send(timed(ask))


def hear_remit(pipe: Any, where: str) -> None:
    """Process: a server that measures how old each event is."""
    from remit import Server

    ages: list[float] = []
    with Server(where) as server:
        server.add_listener("now", lambda sent: ages.append(time.monotonic() - sent))
        pipe.send(server.location.url)
        while len(ages) < EVENTS:
            server.tick()
            server.wait(0.5)
        server.tick()
        pipe.send(median(ages))


def pace_remit(pipe: Any, where: str) -> None:
    """Process: a client that emits a thousand times a second."""
    from remit import Client

    with Client(where) as client:
        pace(lambda: client.emit("now", time.monotonic()))
        pipe.send(None)
