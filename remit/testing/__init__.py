"""Conformance suite for transports, and helpers to test programs that use Remit.

Only `TransportSuite` needs pytest; it is imported at first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from remit.testing import checks_frames, checks_lifecycle, checks_peers, checks_processes
from remit.testing.harness import Disruption, Harness, Relay, UrlHarness
from remit.testing.runner import Check, Outcome, Verdict, try_one
from remit.testing.trial import NotApplicable, Violation

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
    "try_one",
]

_MODULES: Final = (checks_frames, checks_peers, checks_lifecycle, checks_processes)
_FOUND: Final = (each for module in _MODULES for each in vars(module).values() if isinstance(each, Check))
CHECKS: Final[tuple[Check, ...]] = tuple(sorted(_FOUND, key=lambda check: check.line))
"""All checks, sorted by the line of the contract. Within one line they keep the order of their definition."""


def __getattr__(name: str) -> Any:
    if name == "TransportSuite":
        from remit.testing.pytest_plugin import TransportSuite

        return TransportSuite
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
