"""The states of a task and the transitions between them."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

__all__ = ["ABNORMAL", "ENDED", "WAYS", "State", "is_legal"]


class State(StrEnum):
    """State of a task. Compares equal to its text: ``task.state == "running"``."""

    WAITING = "waiting"
    """Not admitted yet, or waiting for the next attempt."""
    LAUNCHING = "launching"
    """A process was requested."""
    PROVING = "proving"
    """A process exists and has not proven its identity yet."""
    RUNNING = "running"
    """The identity is proven, and the task's own code runs."""
    STOPPING = "stopping"
    """The process was asked to end."""
    DONE = "done"
    FAILED = "failed"
    """It raised, or its process ended without a result."""
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    LOST = "lost"
    """It is unknown how the task ended."""


ENDED: Final = frozenset({State.DONE, State.FAILED, State.CANCELLED, State.EXPIRED, State.LOST})
ABNORMAL: Final = frozenset({State.FAILED, State.EXPIRED, State.LOST})
"""Final states of a task that went wrong. A cancelled task is not among them: the user did not want it."""

_UNPROVEN = {State.STOPPING, State.FAILED, State.CANCELLED, State.EXPIRED, State.LOST, State.WAITING}
WAYS: Final[dict[State, set[State]]] = {
    State.WAITING: {State.LAUNCHING, State.RUNNING, State.CANCELLED, State.FAILED},
    State.LAUNCHING: {State.PROVING, *_UNPROVEN},
    State.PROVING: {State.RUNNING, *_UNPROVEN},
    State.RUNNING: {State.STOPPING, State.DONE, State.FAILED, State.LOST, State.WAITING},
    State.STOPPING: {*ENDED, State.WAITING},
    **{state: set() for state in ENDED},
}


def is_legal(before: State, after: State) -> bool:
    """Return whether a task may change from one state to the other."""
    return after in WAYS[before]
