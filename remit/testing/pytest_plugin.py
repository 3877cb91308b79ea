"""Pytest plugin with the conformance suite as a test class and fixtures for programs that use Remit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from remit import Client, Location, Server
from remit.testing import CHECKS, Check, Harness, UrlHarness, Verdict, try_one

# Longest wait between two ticks: a fact may also become true without an event.
POLL_S: Final = 0.05


class TransportSuite:
    """Base class of a test class that runs all checks with its ``harness``.

    The harness is a `Harness`, a subclass of it, or a pytest fixture that returns one::

        class TestMine(TransportSuite):
            harness = UrlHarness("mine+tcp://127.0.0.1:0")
    """

    harness: Any

    def __init_subclass__(cls) -> None:
        """Replace a harness, or its class, by a pytest fixture named ``harness``."""
        super().__init_subclass__()
        given = cls.__dict__.get("harness")
        if isinstance(given, Harness) or (isinstance(given, type) and issubclass(given, Harness)):

            @pytest.fixture
            def harness(self: object) -> Harness:
                return given() if isinstance(given, type) else given

            cls.harness = harness

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"{check.line}-{check.name}")
    def test_contract(self, check: Check, harness: Harness) -> None:
        """Run one check. A check that does not apply is skipped with its reason."""
        # pytest's own timeout would end the whole session: try_one() gives up on a blocked check by itself.
        outcome = try_one(harness, check)
        if outcome.verdict is Verdict.NOT_APPLICABLE:
            pytest.skip(outcome.reason)
        if outcome.error is not None:
            outcome.error.add_note(f"line {check.line} of remit.transport: {check.sentence}")
            raise outcome.error


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option ``--remit-url`` and the ini setting ``remit_urls``."""
    purpose = "URL for tests that use remit_location; each such test runs once per URL"
    parser.getgroup("remit").addoption("--remit-url", action="append", metavar="URL", help=purpose)
    parser.addini("remit_urls", type="linelist", default=["memory://test"], help=purpose)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize each test that needs a location by the URLs."""
    if "remit_url" in metafunc.fixturenames:
        config = metafunc.config
        metafunc.parametrize("remit_url", config.getoption("remit_url") or config.getini("remit_urls"), scope="session")


@pytest.fixture
def remit_location(remit_url: str) -> Location:
    """Fresh location for the URL of ``--remit-url`` or ``remit_urls``; by default over the memory transport."""
    return UrlHarness(remit_url).location()


@pytest.fixture
def remit_server(remit_location: Location) -> Iterator[Server]:
    """Server at `remit_location`, closed after the test. It dispatches events in `tick` and in `remit_until`."""
    with Server(remit_location) as server:
        yield server


@pytest.fixture
def remit_client(remit_server: Server) -> Iterator[Client]:
    """Client of `remit_server`. After the test the server is ticked until it has handled all events of the client.

    Events that are still not handled then fail the test with Undelivered.
    """
    with Client(remit_server.location) as client:
        yield client
        # Client.close() would wait for acknowledgements that only ticks of this thread can produce.
        deadline = time.monotonic() + 5.0
        while not client.flush(0.0) and time.monotonic() < deadline:
            if not remit_server.tick():
                remit_server.wait(POLL_S)


@pytest.fixture
def remit_until(remit_server: Server) -> Callable[..., None]:
    """Function that ticks the server until ``fact()`` holds, and fails the test after ``timeout`` seconds."""

    def until(fact: Callable[[], object], *, timeout: float = 20.0) -> None:
        deadline = time.monotonic() + timeout
        while True:
            # Tick before the first look: events that have arrived are dispatched even with a timeout of 0.
            remit_server.tick()
            if fact():
                return
            if time.monotonic() > deadline:
                pytest.fail(f"not within {timeout} s: {fact}; {remit_server.stats()}")
            remit_server.wait(POLL_S)

    return until
