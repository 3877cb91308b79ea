"""All checks of the transport contract, sorted by the line of the contract that they cover."""

from __future__ import annotations

from typing import Final

from remit.testing import checks_delivery, checks_flow, checks_lifecycle, checks_peers, checks_processes
from remit.testing.runner import Check

__all__ = ["CHECKS"]

CHECKS: Final[tuple[Check, ...]] = tuple(
    sorted(
        (
            value
            for module in (checks_delivery, checks_flow, checks_peers, checks_lifecycle, checks_processes)
            for value in vars(module).values()
            if isinstance(value, Check)
        ),
        key=lambda check: check.line,
    )
)
"""Within one line, the checks keep the order of their definition."""
