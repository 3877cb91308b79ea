"""The contract of `remit.transport`, line by line, over every transport: the suite that is shipped, on ours."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator

import pytest
from redis_server import RedisServer

from remit import Location
from remit.testing import Check, Disruption, Harness, TransportSuite, UrlHarness

PAST_THE_RELAY = ("memory", "chaos+memory", "zmq+inproc", "nng+tcp", "nng+ipc")
"""Those without a wire, or whose ends agree upon one of their own, past whatever stands between them."""
PATIENCE = 1.0
CHAOS_PATIENCE = 0.3
"""Less: what is not declared was tried without chaos."""


class RedisHarness(UrlHarness):
    """Breaks what only a Redis of its own may suffer."""

    def __init__(self, server: RedisServer) -> None:
        breaks = {
            Disruption.CUT_LINK: self.kill,
            Disruption.STALL_PEER: self.stop,
            Disruption.RESTART_SERVER: self.again,
        }
        super().__init__(server.url, patience=PATIENCE, disruptions=breaks)
        self.server = server

    def kill(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.port)) as connection:
            for kind in (b"pubsub", b"normal"):
                connection.sendall(b"CLIENT KILL TYPE %s\r\n" % kind)
                assert connection.recv(100).startswith(b":")

    def stop(self) -> None:
        os.kill(self.server.pid, signal.SIGSTOP)

    def again(self) -> None:
        self.server.kill()
        self.server.start()

    def finish(self) -> None:
        os.kill(self.server.pid, signal.SIGCONT)


class TestContract(TransportSuite):
    @pytest.fixture
    def harness(self, transport_name: str, location: Location, check: Check) -> Iterator[Harness]:
        if check.needs is not None and transport_name == "redis":
            with RedisServer() as server:
                yield RedisHarness(server)
        else:
            yield UrlHarness(location, patience=PATIENCE, relayed=transport_name not in (*PAST_THE_RELAY, "redis"))


class TestChaosContract(TransportSuite):
    """Chaos that is asked for no fault keeps the contract around every transport."""

    @pytest.fixture
    def harness(self, location: Location) -> Harness:
        return UrlHarness(location.replace(scheme=f"chaos+{location.scheme}"), patience=CHAOS_PATIENCE)
