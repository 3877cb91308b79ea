"""Two ends over a Redis of the test's own, and a third one in another process."""

from __future__ import annotations

import contextlib
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from remit.location import Location
from remit.transport import SERVER, Frame, Link, Sent, Up

remit_redis = pytest.importorskip("remit_redis")
transport = remit_redis.remit_transport("redis")
DEADLINE = 20.0
"""Seconds after which what should happen has not."""


def take(link: Link, frame: bytes) -> None:
    """Send one frame as soon as there is room."""
    deadline = time.monotonic() + DEADLINE
    while link.send(SERVER, frame) is not Sent.ACCEPTED:
        assert time.monotonic() < deadline, "no room"
        link.wait(0.1)


def until(fact: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not fact():
        assert time.monotonic() < deadline, fact
        time.sleep(0.002)


def arrive(link: Link, kind: type, *others: Link) -> tuple[Any, list[Any]]:
    """Receive until something of a kind arrives; return it and what came before. The others are kept alive."""
    before: list[Any] = []
    deadline = time.monotonic() + DEADLINE
    while True:
        arrival = link.receive()
        if isinstance(arrival, kind):
            return arrival, before
        if arrival is not None:
            before.append(arrival)
            continue
        assert time.monotonic() < deadline, f"no {kind.__name__}, but {before}"
        for other in others:
            other.wait(0.001)
        link.wait(0.005 if others else 0.05)


def pair(location: Location) -> tuple[Any, Any, Any]:
    """Return a server's link, a client's link, and the client's token, all up."""
    server = transport.bind(location)
    client = transport.connect(location)
    arrive(client, Up)
    return server, client, arrive(server, Up)[0].peer


def works(server: Link, client: Link, peer: Any) -> None:
    """Both directions carry a frame."""
    assert client.send(SERVER, b"there") is Sent.ACCEPTED
    assert arrive(server, Frame)[0] == Frame(peer, b"there")
    assert server.send(peer, b"back") is Sent.ACCEPTED
    assert arrive(client, Frame)[0] == Frame(SERVER, b"back")


CHILD = """
import signal, sys
from remit.location import Location
from remit.transport import Up
from remit_redis import remit_transport
link = getattr(remit_transport("redis"), sys.argv[1])(Location(sys.argv[2]))
while sys.argv[1] == "connect" and not isinstance(link.receive(), Up):
    link.wait(1.0)
print("up", flush=True)
signal.pause()
"""


@contextlib.contextmanager
def child(verb: str, location: Location, beside: Link | None = None) -> Iterator[subprocess.Popen[str]]:
    """Another process with an end that is up and then does nothing. ``beside`` is kept alive until then."""
    process = subprocess.Popen([sys.executable, "-c", CHILD, verb, location.url], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        if beside is not None:
            until(lambda: beside.wait(0.01) or select.select([process.stdout], [], [], 0)[0])
        assert process.stdout.readline() == "up\n"
        yield process
        process.kill()
        process.wait()
