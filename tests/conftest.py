"""Every test that asks for a `location` runs once per transport, each time at a place of its own."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis_server import RedisServer

from remit import Location

TRANSPORTS = ("memory", "chaos+memory", "unix", "zmq+tcp", "zmq+ipc", "zmq+inproc", "nng+tcp", "nng+ipc", "redis")
"""All of them; the environment's REMIT_TRANSPORTS, separated by commas, selects others."""
WITHIN_PROCESS = ("memory", "chaos+memory", "zmq+inproc")
"""Those that no process but their own can reach."""

OF_ONE = {"zeromq": "zmq", "nng": "nng", "redis": "redis"}
"""Folders of tests of one transport, and what its schemes begin with: they need its library."""
CHOSEN = [name.strip() for name in os.environ.get("REMIT_TRANSPORTS", "").split(",") if name.strip()] or [*TRANSPORTS]

collect_ignore = [
    f"transports/{folder}" for folder, scheme in OF_ONE.items() if not any(name.startswith(scheme) for name in CHOSEN)
]
_numbers = itertools.count(1)


def pytest_configure() -> None:
    """Hand down no signal that is ignored, as under nohup or in a shell's background: tests are about these signals."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)  # Still nothing to us; what we start does not ignore it.


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    crossing = "crossing_location" in metafunc.fixturenames
    chosen = [name for name in CHOSEN if not crossing or name not in WITHIN_PROCESS]
    if "transport_name" in metafunc.fixturenames:
        metafunc.parametrize("transport_name", chosen, scope="session")


@pytest.fixture
def location(transport_name: str, request: pytest.FixtureRequest) -> Location:
    """A fresh place where a server may bind; those on TCP leave the port to the system."""
    unique = f"t{os.getpid()}-{next(_numbers)}"
    if transport_name in WITHIN_PROCESS:
        return Location(f"{transport_name}://{unique}")
    if transport_name in ("redis", "rediss"):
        return Location(request.getfixturevalue("redis_url"), prefix=unique)
    if transport_name.endswith("tcp"):
        return Location(f"{transport_name}://127.0.0.1:0")
    return Location(f"{transport_name}://{request.getfixturevalue('short_path') / unique}")


@pytest.fixture
def crossing_location(location: Location) -> Location:
    """The same, for what crosses processes."""
    return location


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose name leaves room for the 107 bytes that a socket's path may have."""
    folder = tempfile.mkdtemp(prefix="remit-")
    yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A redis-server to share: the environment's REMIT_REDIS_URL, else one of our own."""
    if url := os.environ.get("REMIT_REDIS_URL"):
        yield url
        return
    with RedisServer() as server:
        yield server.url
