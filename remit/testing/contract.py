"""Contract: all checks, in the order of the contract's lines."""

from __future__ import annotations

from typing import Final

from remit.testing import delivery, disruptions, flow, forks, life, peers
from remit.testing.check import Check

__all__ = ["CHECKS"]

TOPICS: Final = (delivery, flow, peers, life, forks, disruptions)
CHECKS: Final[tuple[Check, ...]] = tuple(
    sorted((check for topic in TOPICS for check in topic.TOPIC.checks), key=lambda check: check.line)
)
"""What every transport is put to, by the contract's lines."""
