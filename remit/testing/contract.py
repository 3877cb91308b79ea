"""Contract: all checks, in the order of the contract's lines."""

from __future__ import annotations

from typing import Final

from remit.testing import checks_delivery as delivery
from remit.testing import checks_flow as flow
from remit.testing import checks_lifecycle as life
from remit.testing import checks_peers as peers
from remit.testing import checks_processes as forks
from remit.testing.runner import Check

__all__ = ["CHECKS"]

TOPICS: Final = (delivery, flow, peers, life, forks)
CHECKS: Final[tuple[Check, ...]] = tuple(
    sorted((check for topic in TOPICS for check in topic.TOPIC.checks), key=lambda check: check.line)
)
"""What every transport is put to, by the contract's lines."""
