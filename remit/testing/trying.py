"""Trying: carries checks out, each within its deadline, and says what came of it."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterable, Iterator
from typing import Final

from remit.testing.bench import Bench
from remit.testing.check import Check, Outcome, Verdict
from remit.testing.harness import Harness
from remit.testing.stuck import Catcher, where_is
from remit.testing.violation import NotApplicable, Violation

__all__ = ["try_all", "try_one"]

GRACE: Final = 2.0
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
    error = _attempt(harness, check, harness.deadline if declared else harness.patience)
    if isinstance(error, NotApplicable):
        return _not_applicable(check, str(error))
    if not declared:
        if error is not None:
            return _not_applicable(check, f"{check.capability} is not declared, and does not work: {_told(error)}")
        error = Violation(f"it works: declare it, by Capabilities({check.capability}=True)")
    if error is None:
        return Outcome(check=check, verdict=Verdict.PASSED)
    return Outcome(check=check, verdict=Verdict.FAILED, reason=_told(error), error=error)


def _attempt(harness: Harness, check: Check, deadline: float) -> BaseException | None:
    """Return what a check ended with, or a Violation if it did not end."""
    caught = Catcher()

    def run() -> None:
        with caught, Bench(harness, deadline, breakable=check.needs is not None) as bench, caught:
            check.run(bench)

    thread = threading.Thread(target=run, name=f"check {check.name}", daemon=True)
    thread.start()
    thread.join(deadline + min(GRACE, deadline / 2))
    if thread.is_alive():
        return caught.error or Violation(f"still blocked after {deadline} s, at {where_is(thread)}")
    return caught.error


def _not_applicable(check: Check, reason: str) -> Outcome:
    return Outcome(check=check, verdict=Verdict.NOT_APPLICABLE, reason=reason)


def _told(error: BaseException) -> str:
    text = inspect.cleandoc(str(error)).replace("\n", " ")
    return text if isinstance(error, Violation) else f"{type(error).__name__}: {text}".rstrip(": ")
