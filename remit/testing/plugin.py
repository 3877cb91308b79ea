"""Plugin: fixtures for the tests of programs that use Remit; pytest loads it by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from remit import Client, Location, Server

__all__ = [
    "pytest_addoption",
    "pytest_generate_tests",
    "remit_client",
    "remit_location",
    "remit_server",
    "remit_until",
]

DEFAULT_URL: Final = "memory://test"
DEADLINE: Final = 20.0
"""Seconds after which `remit_until` gives up, unless told otherwise."""
SETTLING: Final = 5.0
"""Seconds after a test in which its server may handle what is left."""
PAUSE: Final = 0.05
"""Seconds of one wait for something to arrive."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--remit-url``, and ``remit_urls`` to the ini file."""
    told = "where tests that use remit_location have their servers; several: each such test runs over each"
    parser.getgroup("remit").addoption("--remit-url", action="append", metavar="URL", help=told)
    parser.addini("remit_urls", type="linelist", default=[DEFAULT_URL], help=told)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that needs a location once per URL."""
    if "remit_url" in metafunc.fixturenames:
        config = metafunc.config
        metafunc.parametrize("remit_url", config.getoption("remit_url") or config.getini("remit_urls"), scope="session")


@pytest.fixture
def remit_location(remit_url: str) -> Location:
    """A fresh location, over the transport that ``--remit-url`` or ``remit_urls`` names: by default, memory."""
    from remit.testing.harness import UrlHarness

    return UrlHarness(remit_url).location()


@pytest.fixture
def remit_server(remit_location: Location) -> Iterator[Server]:
    """A server there, closed after the test. It hears what its `tick`, or `remit_until`, lets it."""
    from remit import Server

    with Server(remit_location) as server:
        yield server


@pytest.fixture
def remit_client(remit_server: Server) -> Iterator[Client]:
    """A client of that server, which after the test is ticked until it has handled all that was emitted.

    What it has not handled then fails the test, by Undelivered.
    """
    from remit import Client

    with Client(remit_server.location) as client:
        yield client
        deadline = time.monotonic() + SETTLING
        while not client.flush(0.0) and time.monotonic() < deadline:
            if not remit_server.tick():
                remit_server.wait(PAUSE)


@pytest.fixture
def remit_until(remit_server: Server) -> Callable[..., None]:
    """A function that ticks the server until ``fact()`` holds; fails after ``timeout`` seconds."""

    def until(fact: Callable[[], object], *, timeout: float = DEADLINE) -> None:
        deadline = time.monotonic() + timeout
        while True:
            remit_server.tick()
            if fact():
                return
            if time.monotonic() > deadline:
                pytest.fail(f"not within {timeout} s: {fact}; {remit_server.stats()}")
            remit_server.wait(PAUSE)

    return until
