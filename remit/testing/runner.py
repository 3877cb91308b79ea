"""Runner of single checks of the transport contract, with or without pytest."""

from __future__ import annotations

import enum
import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from remit.testing.harness import Disruption, Harness
from remit.testing.trial import ErrorRecorder, NotApplicable, Trial, Violation, current_line

# Longest time after its deadline in which a check may close its links. It is at most half the deadline.
CLEANUP_S: Final = 2.0


def try_one(harness: Harness, check: Check) -> Outcome:
    """Run a check within the harness's ``deadline``, in a thread that is abandoned if it does not end.

    A check of a capability that is not declared runs for ``patience`` seconds, and fails if the capability works.
    """
    name = check.capability
    declared = not name or bool(getattr(harness.transport.capabilities, name))
    error = _run(harness, check, harness.deadline if declared else harness.patience)
    if not declared:
        if error is None:
            error = Violation(f"{name} works but is not declared: set Capabilities({name}=True)")
        elif not isinstance(error, NotApplicable):
            error = NotApplicable(f"{name} is not declared and does not work: {_describe(error)}")
    if error is None:
        return Outcome(check=check, verdict=Verdict.PASSED)
    if isinstance(error, NotApplicable):
        return Outcome(check=check, verdict=Verdict.NOT_APPLICABLE, reason=str(error))
    return Outcome(check=check, verdict=Verdict.FAILED, reason=_describe(error), error=error)


def _run(harness: Harness, check: Check, deadline: float) -> BaseException | None:
    """Return the error of a check, a Violation if the check did not end, or None."""
    if check.needs is not None and check.needs not in harness.disruptions:
        return NotApplicable(f"this harness cannot {check.needs.value}")
    caught = ErrorRecorder()

    def run() -> None:
        # The inner recorder keeps the error of the check, which closing the links must not replace.
        with caught, Trial(harness, deadline, breakable=check.needs is not None) as trial, caught:
            check.run(trial)

    # A thread, because a transport that blocks cannot be interrupted; a daemon, so that it does not block the exit.
    thread = threading.Thread(target=run, name=f"check {check.name}", daemon=True)
    thread.start()
    thread.join(deadline + min(CLEANUP_S, deadline / 2))
    if thread.is_alive():
        return caught.error or Violation(f"still blocked after {deadline} s, at {current_line(thread)}")
    return caught.error


def _describe(error: BaseException) -> str:
    text = inspect.cleandoc(str(error)).replace("\n", " ")
    return text if isinstance(error, Violation) else f"{type(error).__name__}: {text}".rstrip(": ")


class Verdict(enum.Enum):
    """Result of a check."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One requirement on every transport, or on those that declare a capability."""

    line: int
    """Number of the rule in the contract, `remit.transport`."""
    name: str
    sentence: str
    run: Callable[[Trial], None]
    """Raises Violation, NotApplicable, or any error of the transport."""
    capability: str = ""
    """Field of `remit.transport.Capabilities` that declares it; empty if every transport must fulfil it."""
    needs: Disruption | None = None
    """Fault that the harness must be able to inject."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Result of one check, with its reason."""

    check: Check
    verdict: Verdict
    reason: str = ""
    """Why the check failed or does not apply; empty if it passed."""
    error: BaseException | None = None
    """The exception, if the check failed."""


def check(
    line: int, *, capability: str = "", needs: Disruption | None = None
) -> Callable[[Callable[[Trial], None]], Check]:
    """Turn the decorated function into a `Check`: its name is the check's, its docstring the sentence."""

    def make(run: Callable[[Trial], None]) -> Check:
        sentence = inspect.getdoc(run) or run.__name__
        return Check(line=line, name=run.__name__, sentence=sentence, run=run, capability=capability, needs=needs)

    return make
