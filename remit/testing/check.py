"""Check: one line of the transport contract as something that can be tried on any transport, with or without pytest."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from remit.testing.bench import Bench
from remit.testing.harness import Disruption

__all__ = ["Check", "Outcome", "Topic", "Verdict"]


class Verdict(enum.Enum):
    """What came of trying a check."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Something that every transport must do, or, if it is about a capability, those that declare it."""

    line: int
    """The contract's line in `remit.transport` that it belongs to."""
    name: str
    sentence: str
    run: Callable[[Bench], None]
    """Try it; raises Violation, or whatever the transport raises."""
    capability: str = ""
    """The field of `remit.transport.Capabilities` which says whether this works; empty: it always must."""
    needs: Disruption | None = None
    """What the harness must be able to break for this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A check that was tried."""

    check: Check
    verdict: Verdict
    reason: str = ""
    """Why it failed or does not apply; empty when it passed."""
    error: BaseException | None = None
    """What was raised, when it failed."""


class Topic:
    """The checks of one file, in the order of their writing."""

    def __init__(self) -> None:
        self.checks: list[Check] = []

    def check(
        self, line: int, sentence: str, *, capability: str = "", needs: Disruption | None = None
    ) -> Callable[[Callable[[Bench], None]], Callable[[Bench], None]]:
        """Make the decorated function a check that carries its name."""

        def add(run: Callable[[Bench], None]) -> Callable[[Bench], None]:
            name = run.__name__
            self.checks.append(
                Check(line=line, name=name, sentence=sentence, run=run, capability=capability, needs=needs)
            )
            return run

        return add
