"""Check: one line of the transport contract as something that can be tried on any transport, with or without pytest."""

from __future__ import annotations

import enum
import inspect
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from remit.testing.bench import Bench
    from remit.testing.harness import Disruption, Harness

__all__ = ["Check", "NotApplicable", "Outcome", "Topic", "Verdict", "Violation", "try_all", "try_one"]

GRACE: Final = 2.0
"""Seconds after its deadline within which a check must have cleaned up behind itself, or half a short deadline."""


class Violation(AssertionError):
    """Raised by a check when a transport breaks the contract; its text says what was seen."""


class NotApplicable(Exception):
    """Raised by a check that cannot be tried here; its text says why."""


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


class Catcher:
    """Keeps the error that a block ends with, whichever it is."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def __enter__(self) -> Catcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.error = self.error or error
        return True


def where_is(thread: threading.Thread) -> str:
    """Say which line a thread is in: the innermost of a check's, and the innermost of all."""
    frame = sys._current_frames().get(thread.ident or 0)
    stack = traceback.extract_stack(frame) if frame is not None else []
    ours = [each for each in stack if Path(each.filename).parent == Path(__file__).parent]
    return " in ".join(f"{Path(each.filename).name}:{each.lineno} {each.name}" for each in [*ours[-1:], *stack[-1:]])


def _attempt(harness: Harness, check: Check, deadline: float) -> BaseException | None:
    """Return what a check ended with, or a Violation if it did not end."""
    from remit.testing.bench import Bench

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
