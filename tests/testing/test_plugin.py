"""The fixtures for the tests of programs that use Remit, as such tests use them."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

TEST = """
def test_it(remit_server, remit_client, remit_until):
    heard = []
    remit_server.add_listener("job.done", heard.append)
    remit_client.emit("job.done", 7)
    remit_until(lambda: heard)
    assert heard == [7]

def test_it_is_handled_in_the_end(remit_server, remit_client):
    remit_server.add_listener("late", lambda: print("handled late"))
    remit_client.emit("late")

def test_places_differ(remit_location):
    from remit import Location
    assert isinstance(remit_location, Location)
    print("at", remit_location)
"""
NEVER = """
def test_never(remit_until):
    remit_until(lambda: False, timeout=0.05)
"""


def run(pytester: pytest.Pytester, source: str, *arguments: str) -> pytest.RunResult:
    pytester.makepyfile(source)
    # Not as installed: these tests are of the checkout, and pytest would refuse the same plugin under two names.
    return pytester.runpytest("-p", "no:remit", "-p", "remit.testing.pytest_plugin", "-rP", *arguments)


def test_a_program_is_tested_in_memory_by_default(pytester: pytest.Pytester) -> None:
    result = run(pytester, TEST)
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines_random(["handled late", "at memory://test-*"])


def test_and_over_any_transports_by_an_option(pytester: pytest.Pytester, short_path: Path) -> None:
    result = run(pytester, TEST, "--remit-url", "memory://a", "--remit-url", f"unix://{short_path}/b.sock")
    result.assert_outcomes(passed=6)


def test_or_by_the_ini_file(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nremit_urls =\n    memory://from-ini")
    result = run(pytester, TEST, "-k", "places")
    result.assert_outcomes(passed=1, deselected=2)
    result.stdout.fnmatch_lines(["at memory://from-ini-*"])


def test_what_never_comes_true_fails_in_time(pytester: pytest.Pytester) -> None:
    result = run(pytester, NEVER)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*not within 0.05 s: *"])


def test_pytest_finds_the_plugin_by_itself() -> None:
    assert [entry.value for entry in entry_points(group="pytest11", name="remit")] == ["remit.testing.pytest_plugin"]
