"""Suite: the checks as pytest tests, for a transport's author to subclass."""

from __future__ import annotations

from typing import Any

import pytest

from remit.testing.check import Check, Verdict
from remit.testing.contract import CHECKS
from remit.testing.harness import Harness
from remit.testing.trying import try_one

__all__ = ["TransportSuite"]


class TransportSuite:
    """The checks, for a class of a test file that says by a ``harness`` of what.

    That is a `Harness`, a subclass of it, or a pytest fixture that returns one::

        class TestMine(TransportSuite):
            harness = UrlHarness("mine+tcp://127.0.0.1:0")
    """

    harness: Any

    def __init_subclass__(cls) -> None:
        """Make a fixture of a harness that is none yet, so that the tests can ask for either alike."""
        super().__init_subclass__()
        given = cls.__dict__.get("harness")
        if isinstance(given, Harness) or (isinstance(given, type) and issubclass(given, Harness)):
            cls.harness = _fixture(given)

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"{check.line}-{check.name}")
    def test_contract(self, check: Check, harness: Harness) -> None:
        """Try one check; one that does not apply is skipped, with the reason."""
        outcome = try_one(harness, check)
        if outcome.verdict is Verdict.NOT_APPLICABLE:
            pytest.skip(outcome.reason)
        if outcome.error is not None:
            outcome.error.add_note(f"line {check.line} of remit.transport: {check.sentence}")
            raise outcome.error


def _fixture(given: Harness | type[Harness]) -> Any:
    @pytest.fixture
    def harness(self: object) -> Harness:
        return given() if isinstance(given, type) else given

    return harness
