"""Conformance suite for transports, and helpers to test programs that use Remit.

Only `TransportSuite` needs pytest; it is imported at first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remit.testing.contract import CHECKS
from remit.testing.harness import Disruption, Harness, Relay, UrlHarness
from remit.testing.runner import Check, Outcome, Verdict, try_all, try_one
from remit.testing.violations import NotApplicable, Violation

if TYPE_CHECKING:
    from remit.testing.pytest_plugin import TransportSuite

__all__ = [
    "CHECKS",
    "Check",
    "Disruption",
    "Harness",
    "NotApplicable",
    "Outcome",
    "Relay",
    "TransportSuite",
    "UrlHarness",
    "Verdict",
    "Violation",
    "try_all",
    "try_one",
]


def __getattr__(name: str) -> Any:
    if name == "TransportSuite":
        from remit.testing.pytest_plugin import TransportSuite

        return TransportSuite
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
