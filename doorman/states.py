"""The states of a task and the transitions between them."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

__all__ = ["ABNORMAL", "ENDED", "WAYS", "State"]


class State(StrEnum):
    """State of a task. Compares equal to its text: ``task.state == "running"``."""

    WAITING = "waiting"
    """Not admitted yet, or waiting for the next attempt."""
    LAUNCHING = "launching"
    """A process was requested."""
    PROVING = "proving"
    """A process exists and has not proven its identity yet."""
    RUNNING = "running"
    """The identity is proven, and the task's code runs."""
    STOPPING = "stopping"
    """The process was asked to end."""
    DONE = "done"
    FAILED = "failed"
    """The task's code raised, or its process ended without a result."""
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    LOST = "lost"
    """It is unknown how the task ended."""


ENDED: Final = frozenset({State.DONE, State.FAILED, State.CANCELLED, State.EXPIRED, State.LOST})
ABNORMAL: Final = frozenset({State.FAILED, State.EXPIRED, State.LOST})
"""Final states after a failure. CANCELLED is not among them, because the user asked for it."""

_UNPROVEN = {State.STOPPING, State.FAILED, State.CANCELLED, State.EXPIRED, State.LOST, State.WAITING}
WAYS: Final[dict[State, set[State]]] = {
    State.WAITING: {State.LAUNCHING, State.RUNNING, State.CANCELLED, State.FAILED},
    State.LAUNCHING: {State.PROVING, *_UNPROVEN},
    State.PROVING: {State.RUNNING, *_UNPROVEN},
    State.RUNNING: {State.STOPPING, State.DONE, State.FAILED, State.LOST, State.WAITING},
    State.STOPPING: {*ENDED, State.WAITING},
    **{state: set() for state in ENDED},
}
"""The states that may follow each state."""
