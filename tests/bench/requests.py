"""Requests: round trips, one at a time, and one-way latency at a steady pace, against the raw libraries."""

from __future__ import annotations

import statistics
import tempfile
import time
from functools import partial
from typing import Any

from bench.cases import Case, Processes, Table, location, redis_url

ROUND_TRIP = Table("one request at a time: median of the round trip", "us", less_is_better=True)
LATENCY = Table("one-way latency at 1,000 events a second: median", "us", less_is_better=True)
REQUESTS = 2000
EVENTS = 1000
RAW_ZMQ = "pyzmq REQ/REP"
RAW_NNG = "pynng Req/Rep"
RAW_REDIS = "redis-py, two channels"
RAW_UNIX = "socket.socketpair"
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


def median(seconds: list[float]) -> float:
    """Return the median in microseconds, the first tenth left out."""
    return statistics.median(seconds[len(seconds) // 10 :]) * 1e6


def timed(ask: Any) -> float:
    """Return the median time of one question and its answer."""
    spent = []
    for number in range(REQUESTS):
        start = time.perf_counter()
        ask(number)
        spent.append(time.perf_counter() - start)
    return median(spent)


# -- ours ------------------------------------------------------------------------------------------------------


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


def pace(emit: Any) -> None:
    """Call it a thousand times a second."""
    due = time.monotonic()
    for _ in range(EVENTS):
        due += 0.001
        time.sleep(max(0.0, due - time.monotonic()))
        emit()


# -- the raw libraries -----------------------------------------------------------------------------------------


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
