"""Restarts: whether a program of `doorman up` that has ended comes back, and when. Pure: told the time, never asks."""

from __future__ import annotations

from collections import deque
from typing import Final

from doorman.cli.plan import Program
from doorman.states import State

__all__ = ["TooOften", "pause_before"]

ABNORMAL: Final = frozenset({State.FAILED, State.EXPIRED, State.LOST})


class TooOften(Exception):
    """Raised when a program would be restarted more often than it may."""


def pause_before(program: Program, before: deque[float], state: State, now: float) -> float | None:
    """Return the seconds until its next start after an end in this state; None: never. Raises TooOften.

    ``before`` are the moments of its restarts so far; this one is added.
    """
    again = state is not State.CANCELLED and program.restart == "permanent"
    if not (again or (program.restart == "transient" and state in ABNORMAL)):
        return None
    while before and before[0] <= now - program.period:
        before.popleft()
    if len(before) >= program.intensity:
        raise TooOften(f"it would be restarted more than {program.intensity} times within {program.period:g} s")
    pause: float = program.backoff * 2 ** len(before)
    before.append(now)
    return min(pause, program.max_backoff)
