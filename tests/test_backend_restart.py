"""A backend that is killed in mid-stream and started again: nothing is lost, nothing is repeated."""

from __future__ import annotations

import os
import threading

import pytest
from redis_server import RedisServer
from waiting import tick_until

from remit import Client, Server

EVENTS = 20_000
KILLS = (3_000, 9_000, 15_000)
"""After so many events the backend is killed."""


CHOSEN = os.environ.get("REMIT_TRANSPORTS", "redis")
pytestmark = pytest.mark.skipif("redis" not in CHOSEN, reason="the transports chosen have no backend between the ends")


@pytest.fixture
def backend() -> RedisServer:
    return RedisServer()


def test_killing_the_backend_in_mid_stream_loses_and_repeats_nothing(backend: RedisServer) -> None:
    heard: list[int] = []
    failures: list[BaseException] = []

    def emit(url: str) -> None:
        try:
            with Client(url, linger=30) as client:
                for number in range(EVENTS):
                    client.emit("n", number)
        except BaseException as error:
            failures.append(error)

    kills = list(KILLS)
    with backend, Server(f"{backend.url}?prefix=killed") as server:

        def hear(number: int) -> None:
            heard.append(number)
            if kills and len(heard) >= kills[0]:
                kills.pop(0)
                backend.kill()
                backend.start()

        server.add_listener("n", hear)
        thread = threading.Thread(target=emit, args=(f"{backend.url}?prefix=killed",))
        thread.start()
        tick_until(server, lambda: not thread.is_alive(), 50)
    assert failures == []
    assert kills == []
    assert heard == list(range(EVENTS))
