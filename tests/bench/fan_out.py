"""Fan-out: what part of a publication's cost is `send`, which is all that a backend's own multicast could save.

``PYTHONPATH=.:support python -m bench.fan_out [SUBSCRIBERS]`` in ``tests``. It prints, for each transport, the server's
time on a processor for one publication to one subscriber, and how much of it is spent in the link's ``send``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from internals import server_io
from redis_server import RedisServer

from remit import Server

SUBSCRIBERS = 50
PUBLICATIONS = {1: 400, 64: 6400}
"""How many, by how many at a time."""
BOUND = 30.0
"""Seconds for the subscribers to come, and for one burst to be confirmed."""
FOLLOW = """
import sys, time
from remit import Client
clients = [Client(sys.argv[1], threaded=False) for _ in range(int(sys.argv[2]))]
for client in clients:
    client.subscribe("p", lambda *_: None, timeout=30)
while True:
    if not sum(client.tick() for client in clients):
        time.sleep(0.0005)
"""


class Timed:
    """A link, and the time that its `send` took."""

    def __init__(self, link: Any) -> None:
        self.__dict__.update(_link=link, spent=0.0)

    def send(self, peer: Any, frame: bytes) -> Any:
        began = time.thread_time()
        sent = self._link.send(peer, frame)
        self.__dict__["spent"] += time.thread_time() - began
        return sent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._link, name, value)


def measure(server: Server, burst: int) -> tuple[float, float]:
    """Return seconds of work for one publication to one subscriber, and how many of them were in `send`."""
    pump = server_io(server).link_pump
    link = pump.link
    timed: Any = Timed(link)
    pump.link = timed
    sessions = pump.machine.sessions.values()
    count, began = PUBLICATIONS[burst], time.thread_time()
    for _ in range(count // burst):
        for number in range(burst):
            server.publish("p", number, "x" * 40)
        server.wait(0.0)
        ends = time.monotonic() + BOUND
        while any(not session.outbox.all_done for session in sessions) and time.monotonic() < ends:
            if not server.tick():
                server.wait(0.01)
    pump.link = link
    deliveries = count * server.stats()["subscriptions"]
    return (time.thread_time() - began) / deliveries, timed.spent / deliveries


@contextmanager
def following(server: Server, subscribers: int) -> Iterator[None]:
    """Have so many subscribers, in another process."""
    process = subprocess.Popen([sys.executable, "-c", FOLLOW, server.location.url, str(subscribers)])
    try:
        ends = time.monotonic() + BOUND
        while server.stats()["subscriptions"] < subscribers and time.monotonic() < ends:
            if not server.tick():
                server.wait(0.05)
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Print a line for each transport and burst."""
    subscribers = int(sys.argv[1]) if len(sys.argv) > 1 else SUBSCRIBERS
    with RedisServer() as redis, tempfile.TemporaryDirectory(prefix="remit-") as folder:
        for url in (redis.url, "zmq+tcp://127.0.0.1:0", "nng+tcp://127.0.0.1:0", f"unix://{folder}/s"):
            for burst in PUBLICATIONS:
                with Server(url) as server, following(server, subscribers):
                    work, sending = measure(server, burst)
                scheme = url.partition(":")[0]
                print(
                    f"{scheme:8}  {subscribers} subscribers, {burst:2} at a time: {work * 1e6:5.1f} us, "
                    f"of it {sending * 1e6:4.1f} us in send ({sending / work:.0%})"
                )


if __name__ == "__main__":
    main()
