"""Faults of the table of `doorman._scheduler.lifecycle`, each of which the simulation has to detect."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any, TypeAlias

from doorman._scheduler import lifecycle
from doorman._scheduler.attempt import Attempt
from doorman._scheduler.lifecycle import (
    TABLE,
    Action,
    CloseProcess,
    Deadline,
    Exited,
    Finish,
    FreeSlot,
    Launched,
    LaunchFailed,
    ManagerClosing,
    Phase,
    ProcessGone,
    Proven,
    Reply,
    ResultReceived,
    SetDeadline,
    Signal,
    SignalTarget,
    WriteRecord,
)

__all__ = ["MUTANTS", "Mutant"]

_Step: TypeAlias = Callable[[Attempt, Any, float], list[Action]]
Mutant: TypeAlias = tuple[Any, Phase, _Step]
"""A row and a column of the table, and what stands there instead."""


def _without(row: Any, phase: Phase, dropped: Callable[[Action], bool]) -> _Step:
    """Return the right function, but for some of its actions."""
    right = TABLE[row][phase]
    return lambda attempt, event, now: [action for action in right(attempt, event, now) if not dropped(action)]


def _go_before_the_journal(attempt: Attempt, event: Any, now: float) -> list[Action]:
    *actions, go = PROVEN(attempt, event, now)
    return [go, *actions]


def _go_while_stopping(_attempt: Attempt, event: Any, _now: float) -> list[Action]:
    return [Reply("go", event.sender)]


def _go_to_any_sender(_attempt: Attempt, event: Any, _now: float) -> list[Action]:
    return [Reply("go", event.sender)]


def _run_again(attempt: Attempt, event: Any, now: float) -> list[Action]:
    return TABLE[ProcessGone][Phase.LAUNCHING](attempt, event, now)


def _expire_what_has_its_result(attempt: Attempt, event: Any, now: float) -> list[Action]:
    outcome, attempt.outcome = attempt.outcome, None
    actions = EXPIRED(attempt, event, now)
    attempt.outcome = outcome
    return actions


def _finish_twice(attempt: Attempt, event: Any, now: float) -> list[Action]:
    actions = FAILED(attempt, event, now)
    return [*actions, actions[-1]] if isinstance(actions[-1], Finish) else actions


def _stop_what_is_detached(attempt: Attempt, event: Any, now: float) -> list[Action]:
    return TABLE[lifecycle.CancelRequested][Phase.RUNNING](attempt, event, now)


def _is_kill(action: Action) -> bool:
    return isinstance(action, SetDeadline) and action.deadline is Deadline.KILL


PROVEN = TABLE[Proven][Phase.PROVING]
FAILED = TABLE[LaunchFailed][Phase.LAUNCHING]
EXPIRED = TABLE[Deadline.EXPIRY][Phase.RUNNING]
MUTANTS: dict[str, Mutant] = {
    "go before the journal": (Proven, Phase.PROVING, _go_before_the_journal),
    "no journal entry of the proof": (
        Proven,
        Phase.PROVING,
        _without(Proven, Phase.PROVING, lambda action: isinstance(action, WriteRecord)),
    ),
    "go while stopping": (Proven, Phase.STOPPING, _go_while_stopping),
    "go to any sender": (Proven, Phase.RUNNING, _go_to_any_sender),
    "no deadline of the hello": (
        Launched,
        Phase.LAUNCHING,
        _without(Launched, Phase.LAUNCHING, lambda action: isinstance(action, SetDeadline)),
    ),
    "no KILL after the grace": (
        lifecycle.CancelRequested,
        Phase.RUNNING,
        _without(lifecycle.CancelRequested, Phase.RUNNING, _is_kill),
    ),
    "a slot is never freed": (
        Exited,
        Phase.PROVING,
        _without(Exited, Phase.PROVING, lambda action: isinstance(action, FreeSlot)),
    ),
    "a process is never closed": (
        Exited,
        Phase.PROVING,
        _without(Exited, Phase.PROVING, lambda action: isinstance(action, CloseProcess)),
    ),
    "a task ends twice": (LaunchFailed, Phase.LAUNCHING, _finish_twice),
    "an end is not journalled": (
        lifecycle.OutcomeOpened,
        Phase.EXITED,
        _without(lifecycle.OutcomeOpened, Phase.EXITED, lambda action: isinstance(action, WriteRecord)),
    ),
    "a result is not journalled": (
        ResultReceived,
        Phase.RUNNING,
        _without(ResultReceived, Phase.RUNNING, lambda action: isinstance(action, WriteRecord)),
    ),
    "a result does not count after the expiry": (Deadline.EXPIRY, Phase.RUNNING, _expire_what_has_its_result),
    "what ran under a dead manager runs again": (ProcessGone, Phase.RUNNING, _run_again),
    "a wrapper's child goes on": (
        Exited,
        Phase.RUNNING,
        _without(
            Exited,
            Phase.RUNNING,
            lambda action: action == Signal(signal.SIGKILL, SignalTarget.OWN),
        ),
    ),
    "descendants have no grace": (lifecycle.DescendantsLeft, Phase.STOPPING, lambda *_: [lifecycle.KILL]),
    "descendants outlive their task": (lifecycle.DescendantsLeft, Phase.RUNNING, lambda *_: []),
    "a detached process is stopped with its manager": (ManagerClosing, Phase.RUNNING, _stop_what_is_detached),
}
