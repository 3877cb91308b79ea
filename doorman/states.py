"""States: where a task stands, and the ways it may go from there. Imports nothing of ours."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

__all__ = ["ENDED", "WAYS", "State", "is_legal"]


class State(StrEnum):
    """Where a task stands. Compares equal to its text: ``task.state == "running"``."""

    WAITING = "waiting"
    """Not admitted yet, or to be tried again."""
    LAUNCHING = "launching"
    """A process was asked for."""
    PROVING = "proving"
    """A process is there and has yet to prove that it is the task's."""
    RUNNING = "running"
    """Proven, and told to go: the task's own code runs."""
    STOPPING = "stopping"
    """Told to end."""
    DONE = "done"
    FAILED = "failed"
    """It raised, or its process died."""
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    LOST = "lost"
    """Nobody can know any more how it ended."""


ENDED: Final = frozenset({State.DONE, State.FAILED, State.CANCELLED, State.EXPIRED, State.LOST})

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
    """Whether a task may go from one state to the other."""
    return after in WAYS[before]
