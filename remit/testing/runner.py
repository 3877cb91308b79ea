"""Runner of single checks of the transport contract, with or without pytest."""

from __future__ import annotations

import enum
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from remit.testing.harness import Disruption, Harness
from remit.testing.link_pair import Trial
from remit.testing.violations import ErrorRecorder, NotApplicable, Violation, current_line

__all__ = ["Check", "Outcome", "Verdict", "check", "try_all", "try_one"]


CLEANUP_S: Final = 2.0
"""Seconds after its deadline within which a check must have cleaned up behind itself, or half a short deadline."""


def try_all(harness: Harness, checks: Iterable[Check]) -> Iterator[Outcome]:
    """Try one check after the other, each at a fresh location."""
    for check in checks:
        yield try_one(harness, check)


def try_one(harness: Harness, check: Check) -> Outcome:
    """Try a check within the harness's ``deadline``, in a thread that is left behind should it not end.

    A capability is tried although it is not declared, for ``patience`` seconds: one that works must be declared.
    """
    if check.needs is not None and check.needs not in harness.disruptions:
        return _not_applicable(check, f"this harness cannot {check.needs.value}")
    declared = not check.capability or bool(getattr(harness.transport.capabilities, check.capability))
    error = _run(harness, check, harness.deadline if declared else harness.patience)
    if isinstance(error, NotApplicable):
        return _not_applicable(check, str(error))
    if not declared:
        if error is not None:
            return _not_applicable(check, f"{check.capability} is not declared, and does not work: {_describe(error)}")
        error = Violation(f"it works: declare it, by Capabilities({check.capability}=True)")
    if error is None:
        return Outcome(check=check, verdict=Verdict.PASSED)
    return Outcome(check=check, verdict=Verdict.FAILED, reason=_describe(error), error=error)


def _run(harness: Harness, check: Check, deadline: float) -> BaseException | None:
    """Return what a check ended with, or a Violation if it did not end."""
    caught = ErrorRecorder()

    def run() -> None:
        with caught, Trial(harness, deadline, breakable=check.needs is not None) as trial, caught:
            check.run(trial)

    thread = threading.Thread(target=run, name=f"check {check.name}", daemon=True)
    thread.start()
    thread.join(deadline + min(CLEANUP_S, deadline / 2))
    if thread.is_alive():
        return caught.error or Violation(f"still blocked after {deadline} s, at {current_line(thread)}")
    return caught.error


def _not_applicable(check: Check, reason: str) -> Outcome:
    return Outcome(check=check, verdict=Verdict.NOT_APPLICABLE, reason=reason)


def _describe(error: BaseException) -> str:
    text = inspect.cleandoc(str(error)).replace("\n", " ")
    return text if isinstance(error, Violation) else f"{type(error).__name__}: {text}".rstrip(": ")


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
    run: Callable[[Trial], None]
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


def check(
    line: int, *, capability: str = "", needs: Disruption | None = None
) -> Callable[[Callable[[Trial], None]], Check]:
    """Turn the decorated function into a `Check`: its name is the check's, its docstring the sentence."""

    def make(run: Callable[[Trial], None]) -> Check:
        sentence = inspect.getdoc(run) or run.__name__
        return Check(line=line, name=run.__name__, sentence=sentence, run=run, capability=capability, needs=needs)

    return make
